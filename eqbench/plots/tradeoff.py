"""Accuracy against the metric that ranks, a panel a group (no torch)."""

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from eqbench.leaderboard import Board
from eqbench.metrics import Metric
from eqbench.plots.drawing import MARKS, Titles, by_label, colours_of, legend, mark, panels, rankings

CAPTION = (
    "Accuracy against equivariance, a panel a group. Filled: trained; hollow: untrained; crosses: 95 % intervals (none on a board "
    "of more than 1,500 points, where untrained networks are pale dots); ringed and joined: the Pareto front of each data set's trained networks, those that no other is at least as "
    "good as in both and better in one; models without an accuracy, for want of labels or of a cell, stand in the grey strip."
)
FRONT = "#222222"
NAMED = 12  # networks of a front that its title names
STRIP = -0.14  # where points without an accuracy stand
ACCURACY = [f"accuracy{state}{end}" for state in ("", "_init") for end in ("", "_lo", "_hi")]


def draw(board: Board, titles: Titles) -> Figure | None:
    """The figure, or None for a board without its numbers; `titles` gets what its marks are."""
    found = rankings(board.table)
    if not found:
        return None
    colours = colours_of(board)
    figure, grid = panels([list(table["group"].unique()) for table in found.values()])
    # The accuracy of a row without its own is that of the network's other rows: it does not depend on the group.
    accuracies = board.table[ACCURACY].fillna(board.table.groupby(["model", "data"])[ACCURACY].transform("first"))
    few = 2 * sum(map(len, found.values())) <= MARKS
    for metric, table in found.items():
        table = table.join(accuracies)
        strip = bool(table["accuracy"].isna().any())
        for group, rows in table.groupby("group", sort=False):
            axes = grid[str(group)]
            for k, (colour, marker, own) in enumerate(by_label(rows, colours)):
                for suffix, face, state in (("_init", "white", "untrained"), ("", colour, "trained")):
                    x, y = own[metric.name + suffix], own["accuracy" + suffix]
                    if not few and state == "untrained":
                        _dots(axes, x, y.fillna(STRIP), colour)
                        continue
                    gid = f"points-{group}-{k}{suffix}"
                    axes.scatter(x, y.fillna(STRIP), 26, marker=marker, facecolor=face, edgecolor=colour, gid=gid,
                                 zorder=3)  # fmt: skip
                    if not few:
                        continue
                    titles[gid] = [
                        f"{model} on {data}, {group}, {state}: {metric.symbol} {error:.3g}, "
                        + ("no accuracy" if math.isnan(accuracy) else f"accuracy {accuracy:.3g}")
                        for model, data, error, accuracy in zip(own["model"], own["data"], x, y, strict=True)
                        if not math.isnan(error)
                    ]
                    _crosses(axes, own, metric.name, suffix, colour)
            _front(axes, rows, metric, str(group), titles)
            axes.axhspan(-0.22, -0.06, color="#f2f2f2", zorder=0, visible=strip)
            axes.set_xlabel(f"{metric.title} {metric.symbol}", fontsize=8)
        # Shared, and set when all panels of the metric are drawn: it ends the automatic scaling.
        axes.set_ylim(-0.22 if strip else -0.02, 1.04)
        axes.set_yticks([STRIP] * strip + [0, 0.5, 1], ["no accuracy"] * strip + ["0", "0.5", "1"])
        axes.set_xlim(left=0)
    figure.supylabel("Top-1 accuracy", fontsize=9)
    more = [mark("o", "#666666", "trained"), mark("o", "#666666", "untrained", hollow=True)]
    more += [Line2D([], [], color=FRONT, linestyle="--", linewidth=0.9, label="Pareto front")]
    legend(figure, colours, [model for table in found.values() for model in table["model"]], more)
    return figure


def _dots(axes: Axes, x: pd.Series, y: pd.Series, colour: str) -> None:
    """All points, pale, as one path of round line ends: a third of the bytes of as many marks."""
    xs, ys = ([place for end in axis for place in (end, end, math.nan)] for axis in (x, y))
    (line,) = axes.plot(xs, ys, color=colour, alpha=0.3, linewidth=3.5, solid_capstyle="round", zorder=2)
    line.get_path().should_simplify = False  # lines without length would be left out


def _crosses(axes: Axes, rows: pd.DataFrame, name: str, suffix: str, colour: str) -> None:
    """The intervals of all rows as one line broken by gaps: one path, however many models."""
    xs: list[float] = []
    ys: list[float] = []
    ends = [f"{key}{suffix}{end}" for key in (name, "accuracy") for end in ("", "_lo", "_hi")]
    for x, left, right, y, low, high in rows[ends].itertuples(index=False):
        y = STRIP if math.isnan(y) else y
        xs += [left, right, math.nan, x, x, math.nan]
        ys += [y, y, math.nan, low, high, math.nan]
    axes.plot(xs, ys, color=colour, linewidth=1, alpha=0.7, zorder=2)


def _front(axes: Axes, rows: pd.DataFrame, metric: Metric, group: str, titles: Titles) -> None:
    """Ring the Pareto front of each data set, and join it by the stairs below which all others lie."""
    for data, own in rows.groupby("data", sort=False):
        best = pareto(own, metric.name, bool(metric.higher_is_better))
        if best.empty:
            continue
        gid = f"front-{group}-{data}"
        axes.plot(best[metric.name], best["accuracy"], color=FRONT, linewidth=0.9, linestyle="--", gid=gid,
                  drawstyle="steps-post", zorder=1)  # fmt: skip
        axes.scatter(best[metric.name], best["accuracy"], 80, facecolor="none", edgecolor=FRONT, linewidth=0.9)
        more = f" and {len(best) - NAMED} more" * (len(best) > NAMED)
        titles[gid] = [f"Pareto front on {data}, {group}: {', '.join(best['model'][:NAMED])}{more}"]


def pareto(rows: pd.DataFrame, name: str, higher_is_better: bool) -> pd.DataFrame:
    """The rows that no other row is at least as good as in `name` and in accuracy and better in one; from best `name` on.

    >>> rows = pd.DataFrame({"error": [0.1, 0.2, 0.3, 0.3], "accuracy": [0.5, 0.9, 0.8, 0.95]})
    >>> list(pareto(rows, "error", False).index)
    [0, 1, 3]
    """
    both = [name, "accuracy"]
    known = rows.dropna(subset=both).sort_values(both, ascending=[not higher_is_better, False])
    apart = known[both].drop_duplicates()
    front = apart[apart["accuracy"] > apart["accuracy"].cummax().shift(fill_value=-math.inf)]
    return known[known.set_index(both).index.isin(front.set_index(both).index)]
