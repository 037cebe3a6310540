"""The figures of a board, drawn from its wide table and its cells' curves (no torch)."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from eqbench.drawing import STYLE, WIDTH, Titles, by_label, colours_of, legend, mark, panels, svg, words
from eqbench.leaderboard import ALONE, RANKED, Board
from eqbench.metrics import METRICS
from eqbench.results import Status, write_text
from eqbench.schema import UNGROUPED

FIGURES = {
    "tradeoff": "Accuracy against equivariance, a panel a group. Filled: trained; hollow: untrained; crosses: 95 % "
    "intervals. Models measured on images without labels have no accuracy and stand in the grey strip.",
    "heatmap": f"{RANKED.title} {RANKED.symbol} of each trained model under each group: lower is more equivariant. "
    "Hatched: a cell behind the number failed, was skipped, is stale or was not run, or no input size is aligned (a board of "
    "more than 40 rows: grey, values in the table).",
    "emergence": f"What training changed: {RANKED.symbol} untrained and trained, a panel a group. Bars: 95 % intervals, "
    "enveloped over seeds. Grey: the null (shuffled image pairs) before and after training.",
    "spectrum": "Largest Hessian eigenvalues (circles) and the smallest (triangles), untrained above trained, every "
    "seed. Compare states of one architecture, not architectures.",
}
STRIP = -0.14  # where points without an accuracy stand
PRINTED = 40  # rows up to which the heat map prints its values


def plot(board: Board, out_dir: Path) -> list[Path]:
    """Write figures/<name>.svg below `out_dir` for each name in `FIGURES`; returns their paths.

    A board without the numbers that a figure needs gets a figure that says so.
    """
    drawings: dict[str, Callable[[Board, Titles], Figure | None]] = {
        "tradeoff": _tradeoff,
        "heatmap": _heatmap,
        "emergence": _emergence,
        "spectrum": _spectrum,
    }
    paths = []
    for name, caption in FIGURES.items():
        titles: Titles = {}
        with matplotlib.rc_context(STYLE):
            figure = drawings[name](board, titles) or words(
                f"No finished cells hold the numbers of the figure “{name}”."
            )
            text = svg(figure, name, caption.split(".")[0], caption, titles)
        paths.append(out_dir / "figures" / f"{name}.svg")
        write_text(paths[-1], text)
    return paths


def _tradeoff(board: Board, titles: Titles) -> Figure | None:
    table = board.table.dropna(subset=[RANKED.name])
    if table.empty:
        return None
    colours = colours_of(board)
    figure, grid = panels(table["group"].unique())
    for number, (group, axes) in enumerate(grid.items()):
        for k, (colour, marker, own) in enumerate(by_label(table[table["group"] == group], colours)):
            for suffix, face, state in (("_init", "white", "untrained"), ("", colour, "trained")):
                x, y = own[RANKED.name + suffix], own["accuracy" + suffix]
                gid = f"points-{number}-{k}{suffix}"
                axes.scatter(x, y.fillna(STRIP), 26, marker=marker, facecolor=face, edgecolor=colour, gid=gid, zorder=3)
                titles[gid] = [
                    f"{model} on {data}, {group}, {state}: {RANKED.symbol} {error:.3g}, "
                    + ("no labels" if math.isnan(accuracy) else f"accuracy {accuracy:.3g}")
                    for model, data, error, accuracy in zip(own["model"], own["data"], x, y, strict=True)
                    if not math.isnan(error)
                ]
                _crosses(axes, own, suffix, colour)
        strip = bool(table["accuracy"].isna().any())
        axes.axhspan(-0.22, -0.06, color="#f2f2f2", zorder=0, visible=strip)
        axes.set_ylim(-0.22 if strip else -0.02, 1.04)
        axes.set_yticks([STRIP] * strip + [0, 0.5, 1], ["no labels"] * strip + ["0", "0.5", "1"])
    axes.set_xlim(left=0)  # shared, and set when all panels are drawn: it ends the automatic scaling
    figure.supxlabel(f"{RANKED.title} {RANKED.symbol} (lower: more equivariant)", fontsize=9)
    figure.supylabel("Top-1 accuracy", fontsize=9)
    more = [mark("o", "#666666", "trained"), mark("o", "#666666", "untrained", hollow=True)]
    legend(figure, colours, table["model"], more)
    return figure


def _crosses(axes: Axes, rows: pd.DataFrame, suffix: str, colour: str) -> None:
    """The intervals of all rows as one line broken by gaps: one path, however many models."""
    xs: list[float] = []
    ys: list[float] = []
    for row in rows.to_dict("records"):
        x, y = row[RANKED.name + suffix], row["accuracy" + suffix]
        y = STRIP if math.isnan(y) else y
        xs += [row[f"{RANKED.name}{suffix}_lo"], row[f"{RANKED.name}{suffix}_hi"], math.nan, x, x, math.nan]
        ys += [y, y, math.nan, row[f"accuracy{suffix}_lo"], row[f"accuracy{suffix}_hi"], math.nan]
    axes.plot(xs, ys, color=colour, linewidth=1, alpha=0.7, zorder=2)


def _heatmap(board: Board, titles: Titles) -> Figure | None:
    table = board.table[board.table["group"] != UNGROUPED]
    if table[RANKED.name].isna().all():
        return None
    groups = list(dict.fromkeys(table["group"]))
    rows = sorted(set(zip(table["data"], table["model"], strict=True)))
    labels = [f"{data} / {model}" for data, model in rows]
    few = len(rows) <= PRINTED
    left, right, top = 0.25 + 0.068 * max(map(len, labels)), 0.85, 0.45  # inches
    width = min(WIDTH, left + right + max(0.7, 1.3 - 0.1 * len(groups)) * len(groups))
    crowded = sum(len(group) * 0.08 + 0.15 for group in groups) > width - left - right
    top += 0.08 * max(map(len, groups)) if crowded else 0
    height = top + 0.1 + len(rows) * (0.33 if few else max(0.05, 9 / len(rows)))
    figure = Figure(figsize=(width, height))
    bottom, share = 0.1 / height, (height - top - 0.1) / height
    axes = figure.add_axes((left / width, bottom, (width - left - right) / width, share))
    peak = max(1.0, float(table[RANKED.name].max()))
    paint, norm = matplotlib.colormaps["cividis"], Normalize(0, peak)
    if few:
        _boxes(axes, table, rows, groups, lambda value: paint(norm(value)), titles)
    else:
        known = table[table["unranked"].isna()].set_index(["data", "model", "group"])[RANKED.name]
        grid = known.unstack("group").reindex(index=rows, columns=groups)
        axes.set_facecolor("#ececec")
        axes.imshow(grid, paint, norm, aspect="auto", interpolation="nearest", extent=(0, len(groups), len(rows), 0))
    axes.set(xlim=(0, len(groups)), ylim=(len(rows), 0))
    axes.set_xticks([j + 0.5 for j in range(len(groups))], groups, rotation=90 if crowded else 0)
    step = 1 if few else math.ceil(len(rows) / 90)
    axes.set_yticks([i + 0.5 for i in range(0, len(rows), step)], labels[::step], fontsize=9 if few else 5)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    scale = figure.add_axes((1 - 0.65 / width, bottom, 0.14 / width, share))
    for k in range(50):
        scale.add_patch(Rectangle((0, peak * k / 50), 1, peak / 50, color=paint(k / 49)))
    scale.set(xlim=(0, 1), ylim=(0, peak), xticks=[])
    scale.set_title(RANKED.symbol, loc="center", fontweight="normal")
    scale.yaxis.tick_right()
    scale.spines[:].set_visible(False)
    return figure


def _boxes(
    axes: Axes,
    table: pd.DataFrame,
    rows: list[tuple[str, str]],
    groups: list[str],
    paint: Callable[[float], Any],
    titles: Titles,
) -> None:
    """One box a row of the table, with its value, hatched where the row has no rank."""
    for row in table.to_dict("records"):
        i, j = rows.index((row["data"], row["model"])), groups.index(row["group"])
        value, ranked = row[RANKED.name], not isinstance(row["unranked"], str) or row["unranked"] == ALONE
        face = "#ececec" if math.isnan(value) else paint(value)
        ink = "#222222" if math.isnan(value) or sum(face[:3]) > 1.35 else "white"
        shown = row["status"] if math.isnan(value) else f"{value:.2f}"
        axes.add_patch(Rectangle((j, i), 1, 1, facecolor=face, edgecolor="white", gid=f"box-{i}-{j}"))
        titles[f"box-{i}-{j}"] = [
            f"{row['model']} on {row['data']}, {row['group']}: {shown}" + ("" if ranked else f" ({row['unranked']})")
        ]
        if not ranked:
            axes.add_patch(Rectangle((j, i), 1, 1, fill=False, hatch="////", edgecolor=ink, linewidth=0, alpha=0.5))
        pad = None if ranked else {"facecolor": face, "edgecolor": "none", "pad": 1.5}
        axes.text(j + 0.5, i + 0.5, shown, ha="center", va="center", color=ink, fontsize=8.5, bbox=pad)


def _emergence(board: Board, titles: Titles) -> Figure | None:
    name = RANKED.name
    table = board.table.dropna(subset=[name, f"{name}_init"])
    if table.empty:
        return None
    colours = colours_of(board)
    figure, grid = panels(table["group"].unique())
    for number, (group, axes) in enumerate(grid.items()):
        for start, column in ((-0.3, f"{name}_init_null"), (0.5, f"{name}_null")):
            nulls = table.loc[table["group"] == group, column].dropna()
            if len(nulls):
                low, high = nulls.min() - 0.01, nulls.max() + 0.01
                axes.fill_between([start, start + 0.8], low, high, color="#dcdcdc", linewidth=0, zorder=0)
        labels = by_label(table[table["group"] == group], colours)
        for k, (colour, marker, own) in enumerate(labels):
            left = min(0.03, 0.24 / len(labels)) * (k - (len(labels) - 1) / 2)
            lines: list[tuple[float, float]] = []
            bars: list[tuple[float, float]] = []
            for row in own.to_dict("records"):
                lines += [(left, row[f"{name}_init"]), (1 + left, row[name]), (math.nan, math.nan)]
                for x, suffix in ((left, "_init"), (1 + left, "")):
                    bars += [(x, row[f"{name}{suffix}_lo"]), (x, row[f"{name}{suffix}_hi"]), (math.nan, math.nan)]
            axes.plot(*zip(*lines, strict=True), color=colour, linewidth=1.3, alpha=1 if len(own) < 3 else 0.4)
            axes.plot(*zip(*bars, strict=True), color=colour, linewidth=1, alpha=0.7)
            said = [
                f"{model} on {data}, {group}: {RANKED.symbol} {first:.3g} untrained, {last:.3g} trained"
                for model, data, first, last in zip(
                    own["model"], own["data"], own[f"{name}_init"], own[name], strict=True
                )
            ]
            for x, column in ((left, f"{name}_init"), (1 + left, name)):
                gid = f"ends-{number}-{k}-{'init' if x == left else 'final'}"
                axes.scatter([x] * len(own), own[column], 22, marker=marker, color=colour, gid=gid, zorder=3)
                titles[gid] = said
        axes.set_xticks([0, 1], ["untrained", "trained"])
        axes.set_xlim(-0.3, 1.3)
    axes.set_ylim(bottom=0)
    figure.supylabel(f"{RANKED.title} {RANKED.symbol} (lower: more equivariant)", fontsize=9)
    legend(figure, colours, table["model"], [], line=True)
    return figure


def _spectrum(board: Board, titles: Titles) -> Figure | None:
    found: dict[tuple[str, str], list[tuple[str, str, str, float]]] = {}
    for cell, result in board.results.items():
        if result.status is Status.ok and cell.state in ("init", "final"):
            for shape, curve in (("o", "eigenvalues"), ("v", "smallest")):
                marks = [(cell.state, shape, cell.seed, float(value)) for value in result.curves.get(curve, [])]
                if marks:
                    found.setdefault((board.plan.data(cell), cell.model), []).extend(marks)
    if not found:
        return None
    colours = colours_of(board)
    figure = Figure(figsize=(WIDTH, 1.1 + 0.6 * len(found)), layout="constrained")
    axes = figure.subplots()
    kinds: list[Any] = []
    for state, offset, word in (("init", -0.17, "untrained"), ("final", 0.17, "trained")):
        for shape, size in (("o", "largest"), ("v", "smallest")):
            kinds.append(mark(shape, "#666666", f"{size}, {word}", hollow=state == "init"))
            for i, ((data, model), marks) in enumerate(sorted(found.items())):
                own = [(seed, value) for *kind, seed, value in marks if kind == [state, shape]]
                gid, colour = f"values-{i}-{state}-{size}", colours[model][0]
                axes.scatter([value for _, value in own], [i + offset] * len(own), 24, marker=shape, edgecolor=colour,
                             facecolor="white" if state == "init" else colour, gid=gid, zorder=3)  # fmt: skip
                titles[gid] = [f"{model} on {data}, {seed}, {word}: λ = {value:.4g}" for seed, value in own]
    sizes = [abs(value) for marks in found.values() for *_, value in marks if value]
    axes.set_xscale("symlog", linthresh=10.0 ** math.floor(math.log10(min(sizes, default=1.0))))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
    axes.axvline(0, color="#888888", linewidth=0.8)
    axes.set_yticks(range(len(found)), [f"{data} / {model}" for data, model in sorted(found)])
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    symbols = f"{METRICS['lambda_min'].symbol} … {METRICS['lambda_max'].symbol}"
    axes.set_xlabel(f"Hessian eigenvalues {symbols}, symmetric log scale")
    figure.legend(handles=kinds, loc="outside upper left", ncols=4, fontsize=8, handletextpad=0.4)
    return figure
