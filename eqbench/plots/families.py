"""Pictures of families of units: first-layer filters side by side, and their joint tuning curves over angle (no torch)."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from eqbench.config import Cell
from eqbench.leaderboard import Board
from eqbench.plots.drawing import PALETTE, WIDTH, Titles
from eqbench.results import Result, Status

CAPTION = (
    "Units that a group exchanges in trained networks: filters of the first layer, a row a family, member after member as the group "
    "takes one to the next; beside them joint tuning curves, the responses of a family's members to images turned by an angle, counted "
    "from where the unit itself responds most. "
    "Dashed: families whose matches do not exceed the null; at most five models, each under the group with most matched members."
)
MODELS, FAMILIES, CURVES = 5, 6, 2


def draw(board: Board, titles: Titles) -> Figure | None:
    """The figure, or None for a board without its numbers; `titles` gets what its marks are."""
    found = pictured(board)
    if not found:
        return None
    figure = Figure(figsize=(WIDTH, 1.75 * len(found) + 0.1), layout="constrained")
    grid: Any = figure.subplots(len(found), 1 + CURVES, squeeze=False, width_ratios=[1.5, *[1] * CURVES])
    for i, (cell, result) in enumerate(found):
        what = f"{cell.model} on {board.plan.data(cell)}, {cell.group}"
        filters = [one for one in result.curves.get("filters", []) if alive(one["kernels"])]
        _mosaic(grid[i, 0], filters[:FAMILIES], what, i, titles)
        grid[i, 0].set_title(what)
        tuned = [one for one in result.curves.get("tuning", []) if alive(one["responses"])]
        strongest = sorted(tuned, key=lambda one: (not one["matched"], -len(one["members"])))
        for k in range(CURVES):
            axes = grid[i, 1 + k]
            axes.set_visible(k < len(strongest))
            if k < len(strongest):
                _tuning(axes, strongest[k], what, f"{i}-{k}", titles)
            if k < len(strongest) and i == len(found) - 1:
                axes.set_xlabel("Angle from the unit's best, degrees", fontsize=8)
    return figure


def alive(numbers: Any) -> bool:
    """Whether there is anything to see: units that training switched off match each other perfectly."""
    return bool(np.ptp(np.array(numbers, float)) > 1e-3)


def pictured(board: Board) -> list[tuple[Cell, Result]]:
    """For each model the trained cell with most matched members, of the models with most of them; in the plan's order."""
    best: dict[tuple[str, str], tuple[int, Cell]] = {}
    for cell in board.plan.cells:
        result = board.results.get(cell)
        if result is None or result.status is not Status.ok or cell.probe != "circuits" or cell.state != "final":
            continue
        families = [one for key in ("filters", "tuning") for one in result.curves.get(key, [])]
        score = sum(len(one["members"]) for one in families if one["matched"])
        key = (cell.model, board.plan.data(cell))
        if families and (key not in best or score > best[key][0]):
            best[key] = (score, cell)
    shown = sorted(best, key=lambda key: -best[key][0])[:MODELS]
    return [(cell, board.results[cell]) for key, (_, cell) in best.items() if key in shown]


def _mosaic(axes: Axes, families: list[Any], what: str, place: int, titles: Titles) -> None:
    """One picture of all filters, white between them, and a frame around each family."""
    axes.set_axis_off()
    if not families:
        axes.text(0.5, 0.5, "no filters of the image itself", ha="center", va="center", color="#555555", fontsize=8)
        return
    size = max(len(one["kernels"][0][0]) for one in families) + 1
    width = max(len(one["members"]) for one in families) * size + 1
    columns = 2 if width <= 5 * size else 1
    picture = np.ones((math.ceil(len(families) / columns) * (size + 1) + 1, columns * (width + 1), 3))
    for i, one in enumerate(families):
        y, x = i // columns * (size + 1) + 1, i % columns * (width + 1) + 1
        for k, kernel in enumerate(coloured(np.array(one["kernels"], float))):
            picture[y : y + size - 1, x + k * size : x + (k + 1) * size - 1] = kernel
        gid = f"family-{place}-{i}"
        look: Any = {"linestyle": "-" if one["matched"] else "--", "linewidth": 0.9, "edgecolor": "#444444"}
        corner, extent = (x - 1.3, y - 1.3), (len(one["members"]) * size + 0.6, size + 0.6)
        axes.add_patch(Rectangle(corner, *extent, facecolor="none", gid=gid, **look))
        titles[gid] = [f"{what}, {said(one)}"]
    axes.imshow((255 * picture).round().astype(np.uint8), interpolation="none")


def coloured(kernels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights (members, 3, k, k) as colours in [0, 1], grey at 0, on one scale a family: (members, k, k, 3)."""
    peak = np.abs(kernels).max() or 1.0
    return (0.5 + kernels / (2 * peak)).transpose(0, 2, 3, 1)


def _tuning(axes: Axes, family: Any, what: str, place: str, titles: Titles) -> None:
    """A line a member, from -180 to 180 degrees."""
    angles = np.array(family["angles"], float)
    shifted = (angles + 180) % 360 - 180
    order = shifted.argsort()
    for k, response in enumerate(family["responses"]):
        gid = f"member-{place}-{k}"
        values = np.array(response, float)[order]
        axes.plot(shifted[order], values, color=PALETTE[k % len(PALETTE)], linewidth=1.3, gid=gid,
                  linestyle="-" if family["matched"] else "--")  # fmt: skip
        where = shifted[order][int(np.nanargmax(values))]
        titles[gid] = [f"{what}, {said(family)}: sibling {k} responds most at {where:.0f}°"]
    axes.set_xticks([-180, -90, 0, 90, 180])
    axes.set_title(f"{family['layer']}, {len(family['members'])} units", fontsize=8, fontweight="normal")
    axes.grid(axis="both")


def said(family: Any) -> str:
    """A family in words."""
    units = ", ".join(map(str, family["members"]))
    verdict = "above" if family["matched"] else "not above"
    return f"{family['layer']}, units {units}: least correlation {family['correlation']:.2f}, {verdict} the null"
