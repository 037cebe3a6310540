"""The loss on a plane of two random filter-normalised directions around trained weights (no torch)."""

import math

import numpy as np
from matplotlib.figure import Figure

from eqbench.leaderboard import Board
from eqbench.plots.drawing import WIDTH, Titles
from eqbench.plots.sharpness import finished

MODELS = 8  # at most
NATS = 3.0  # above the weights' own loss, where contours end
CAPTION = (
    "Contours of the loss on a plane through the first seed's trained weights, spanned by two random directions whose every "
    "filter has the norm of the network's own; the weights are in the middle. Levels 0.1, 0.3, 1 and 3 nats above their loss, the same in all panels; at most eight models."
)
LEVELS = (0.1, 0.3, 1.0, NATS)
FILLS = ("#f7fbff", "#d6e6f4", "#abd0e6", "#6aaed6", "#3787c0")


def draw(board: Board, titles: Titles) -> Figure | None:
    """The figure, or None for a board without its numbers; `titles` gets what its panels are."""
    found = {place: results[0][1].curves["surface"] for place, results in finished(board, "slices").items()
             if results[0][1].curves.get("surface")}  # fmt: skip
    found = dict(list(found.items())[:MODELS])
    if not found:
        return None
    columns = min(4, len(found))
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(max(WIDTH * columns / 4, 6), 2.6 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for i, ((data, model), surface) in enumerate(found.items()):
        axes = grid.flat[i]
        axes.set_axis_on()
        losses = np.array([[np.nan if v is None else v for v in row] for row in surface])
        middle = float(losses[len(losses) // 2, len(losses) // 2])
        span = np.arange(len(losses)) - len(losses) // 2
        rise = np.ma.masked_invalid(losses - middle)
        axes.contourf(span, span, rise, [min(-1.0, float(rise.min())), *LEVELS], colors=FILLS, extend="max")
        axes.contour(span, span, rise, LEVELS, colors="#333333", linewidths=0.5)
        gid = f"middle-{i}"
        axes.scatter([0], [0], 14, color="#D55E00", marker="x", gid=gid, zorder=3)
        known = losses[np.isfinite(losses)]
        titles[gid] = [f"{model} on {data}: {middle:.3g} nat here, {known.min():.3g} to {known.max():.3g} on the plane"]
        axes.set_title(f"{model} ({data})", fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_aspect("equal")
    figure.supxlabel(
        "contours: " + ", ".join(f"{level:g}" for level in LEVELS) + " nat above the loss in the middle", fontsize=8
    )
    return figure
