"""The metric that ranks before and after training, a panel a group (no torch)."""

import math

from matplotlib.figure import Figure

from eqbench.leaderboard import Board
from eqbench.plots.drawing import MARKS, Titles, by_label, colours_of, legend, panels, rankings

CAPTION = (
    "What training changed: the metric that ranks, untrained and trained, a panel a group. Bars: 95 % intervals "
    "(up to 1,500 points); grey: the null (shuffled image pairs, or a direction without symmetry) before and after training."
)


def draw(board: Board, titles: Titles) -> Figure | None:
    """The figure, or None for a board without its numbers; `titles` gets what its marks are."""
    found = rankings(board.table, init=True)
    if not found:
        return None
    colours = colours_of(board)
    figure, grid = panels([list(table["group"].unique()) for table in found.values()])
    few = 2 * sum(map(len, found.values())) <= MARKS
    for metric, table in found.items():
        name = metric.name
        for group, rows in table.groupby("group", sort=False):
            axes = grid[str(group)]
            for start, column in ((-0.3, f"{name}_init_null"), (0.5, f"{name}_null")):
                nulls = rows[column].dropna()
                if len(nulls):
                    low, high = nulls.min() - 0.01, nulls.max() + 0.01
                    axes.fill_between([start, start + 0.8], low, high, color="#dcdcdc", linewidth=0, zorder=0)
            labels = by_label(rows, colours)
            for k, (colour, marker, own) in enumerate(labels):
                left = min(0.03, 0.24 / len(labels)) * (k - (len(labels) - 1) / 2)
                lines: list[tuple[float, float]] = []
                bars: list[tuple[float, float]] = []
                ends = [f"{name}{state}{end}" for state in ("_init", "") for end in ("", "_lo", "_hi")]
                for init, init_lo, init_hi, final, lo, hi in own[ends].itertuples(index=False):
                    lines += [(left, init), (1 + left, final), (math.nan, math.nan)]
                    bars += [(left, init_lo), (left, init_hi), (math.nan, math.nan)]
                    bars += [(1 + left, lo), (1 + left, hi), (math.nan, math.nan)]
                axes.plot(*zip(*lines, strict=True), color=colour, linewidth=1.3, alpha=1 if len(own) < 3 else 0.4)
                if not few:
                    continue
                axes.plot(*zip(*bars, strict=True), color=colour, linewidth=1, alpha=0.7)
                said = [
                    f"{model} on {data}, {group}: {metric.symbol} {first:.3g} untrained, {last:.3g} trained"
                    for model, data, first, last in zip(
                        own["model"], own["data"], own[f"{name}_init"], own[name], strict=True
                    )
                ]
                for x, column in ((left, f"{name}_init"), (1 + left, name)):
                    gid = f"ends-{group}-{k}-{'init' if x == left else 'final'}"
                    axes.scatter([x] * len(own), own[column], 22, marker=marker, color=colour, gid=gid, zorder=3)
                    titles[gid] = said
            axes.set_xticks([0, 1], ["untrained", "trained"])
            if axes.yaxis.get_tick_params()["labelleft"]:
                axes.set_ylabel(f"{metric.title} {metric.symbol}", fontsize=8)
        axes.set_xlim(-0.3, 1.3)  # shared by the panels of the metric
        axes.set_ylim(bottom=0)
    legend(figure, colours, [model for table in found.values() for model in table["model"]], [], line=True)
    return figure
