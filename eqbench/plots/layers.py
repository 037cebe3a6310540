"""The ladder of representations over depth: an error a rung, a panel a model and group (no torch)."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from eqbench.leaderboard import Board
from eqbench.metrics import METRICS
from eqbench.plots.drawing import PALETTE, WIDTH, Titles, listed
from eqbench.profiles import PERMUTED, leading, maps

CAPTION = (
    "Layer error over depth, a row a model and a column a group, a line a rung of the ladder of representations: coloured where "
    "trained (permuted: with its 95 % interval), grey where untrained; light grey: permuted, of shuffled image pairs; crosses: refused layers. "
    "Cut at 2.5, prefix tokens in the table alone; at most six models, those in which training removed the largest share of the permuted error, and six groups."
)
MODELS, GROUPS = 6, 6
UNRELATED, CUT = 2**0.5, 2.5  # the error of two unrelated maps; a map fitted on few images may err far more
RUNGS = ("layer_error_trivial", "layer_error_spatial", PERMUTED, "layer_error_fitted")
LOOKS: dict[str, Any] = dict(
    zip(RUNGS, [(PALETTE[4], ":"), (PALETTE[5], "-."), (PALETTE[0], "-"), (PALETTE[3], "--")], strict=True)
)


def draw(board: Board, titles: Titles) -> Figure | None:
    """The figure, or None for a board without its numbers; `titles` gets what its marks are."""
    frame = maps(board.layers[board.layers["probe"] == "orbit"])
    shown = frame[frame["metric"].isin(RUNGS)]
    if shown.empty:
        return None
    models = leading(shown, board.table, MODELS)
    groups = list(dict.fromkeys(shown["group"]))[:GROUPS]
    figure = Figure(
        figsize=(min(WIDTH, max(7.2, WIDTH * len(groups) / 4)), 1.45 * len(models) + 0.9),
        layout="constrained",
    )
    grid = figure.subplots(len(models), len(groups), sharex=True, sharey=True, squeeze=False)
    for i, (model, data) in enumerate(models):
        rows = frame[(frame["model"] == model) & (frame["data"] == data)]
        for j, group in enumerate(groups):
            own = rows[rows["group"] == group]
            _panel(grid[i, j], own, f"{model} on {data}, {group}", f"{i}-{j}", titles)
        grid[i, 0].set_title(f"{model} on {data}", fontsize=8.5)
    for j, group in enumerate(groups):
        grid[0, j].annotate(group, (0.5, 1), (0, 16), "axes fraction", "offset points", ha="center", weight="bold")
    highest = max([UNRELATED, *shown["value"].dropna(), *shown["init"].dropna(), *shown["null"].dropna()])
    grid[0, 0].set_ylim(0, min(1.05 * highest, CUT))
    figure.supxlabel("Depth: order of execution, first to last layer", fontsize=9)
    figure.supylabel("Layer error (0: exact)", fontsize=9)
    handles = [
        Line2D(
            [], [], color=colour, linestyle=dash, label=f"{METRICS[name].symbol} {name.removeprefix('layer_error_')}"
        )
        for name, (colour, dash) in LOOKS.items()
        if name in METRICS
    ]
    handles.append(Line2D([], [], color="#8c8c8c", label="untrained"))
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), fontsize=8)
    return figure


def _panel(axes: Axes, rows: pd.DataFrame, what: str, place: str, titles: Titles) -> None:
    axes.grid(axis="y")
    chance = rows[rows["metric"] == PERMUTED]
    axes.plot(chance["depth"], chance["null"], color="#e3e3e3", linewidth=4, zorder=0)
    for name, (colour, dash) in LOOKS.items():
        own = rows[rows["metric"] == name]
        grey, heavy = ("#6e6e6e", 1.8) if name == PERMUTED else ("#b4b4b4", 1.3)
        for column, ink, width, state in (("init", grey, heavy / 2, "untrained"), ("value", colour, heavy, "trained")):
            if own[column].notna().any():
                gid = f"line-{place}-{name}-{state}"
                axes.plot(own["depth"], own[column], color=ink, linestyle=dash, linewidth=width, gid=gid)
                said = f": {listed(own['layer'], own[column])}" if name == PERMUTED else ""
                titles[gid] = [f"{what}, {METRICS[name].symbol} {state}{said}"]
        if name == PERMUTED:
            axes.fill_between(own["depth"], own["lo"], own["hi"], color=colour, alpha=0.2, linewidth=0)
    refused = rows[rows["coverage"] == 0].drop_duplicates("layer")
    if len(refused):
        gid = f"refused-{place}"
        axes.scatter(refused["depth"], [0.03] * len(refused), 14, marker="x", color="#444444", linewidth=0.8, gid=gid)
        titles[gid] = [
            f"{what}: {layer} refused: {why}" for layer, why in zip(refused["layer"], refused["reason"], strict=True)
        ]
