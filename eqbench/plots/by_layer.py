"""One layered metric over depth, a panel a group and a line a model: the emergence index, the Lie ratio (no torch)."""

from collections.abc import Callable
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from eqbench.leaderboard import Board
from eqbench.metrics import METRICS
from eqbench.plots.drawing import Titles, colours_of, legend, listed, panels
from eqbench.profiles import leading, maps

MODELS = 8
GREY = "#a0a0a0"


def drawn(
    board: Board, titles: Titles, name: str, reference: float, limits: Callable[[float, float], tuple[float, float]]
) -> Figure | None:
    """The figure of a metric, or None for a board without it; `titles` gets what its marks are.

    Args:
        reference: where a grey line stands. limits: (least, largest value drawn) -> ends of the axis.
    """
    frame = maps(board.layers[board.layers["metric"] == name].dropna(subset=["value"]))
    if frame.empty:
        return None
    metric, colours = METRICS[name], colours_of(board)
    models = leading(frame, board.table, MODELS)
    figure, grid = panels([list(dict.fromkeys(frame["group"]))])
    ends, highest = [reference], reference
    by = dict(list(frame.groupby(["model", "data", "group"], sort=False)))
    for group, axes in grid.items():
        axes.axhline(reference, color="#d5d5d5", linewidth=3, zorder=1)
        for k, (model, data) in enumerate(models):
            own = by.get((model, data, group))
            if own is None:
                continue
            colour, marker, _ = colours[model]
            before = own.dropna(subset=["init"])
            looks: tuple[tuple[pd.DataFrame, str, str, Any], ...] = (
                (before, "init", "untrained", {"color": GREY, "linewidth": 0.8}),
                (own, "value", "trained", {"color": colour, "linewidth": 1.4, "marker": marker, "markersize": 3}),
            )
            for part, column, state, look in looks:
                if len(part):
                    gid = f"line-{group}-{k}-{state}"
                    axes.plot(part["depth"], part[column], gid=gid, **look)
                    said = f": {listed(part['layer'], part[column])}" if part is own else ""
                    titles[gid] = [f"{model} on {data}, {group}, {metric.symbol} {state}{said}"]
                    ends += [part[column].min(), part[column].max()]
            highest = max([highest, *own["hi"].dropna()])
            axes.fill_between(own["depth"], own["lo"], own["hi"], color=colour, alpha=0.1, linewidth=0)
    axes.set_ylim(*limits(min(ends), max(max(ends), min(highest, 2 * max(ends)))))
    figure.supxlabel("Depth: order of execution, first to last layer", fontsize=9)
    figure.supylabel(f"{metric.title} {metric.symbol}", fontsize=9)
    untrained = [Line2D([], [], color=GREY, label="untrained")] if frame["init"].notna().any() else []
    legend(figure, colours, [model for model, _ in models], untrained, line=True)
    return figure
