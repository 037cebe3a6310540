"""The loss along lines through the weights, and on the way to other weights (no torch)."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from eqbench.leaderboard import Board
from eqbench.plots.drawing import PALETTE, WIDTH, Titles
from eqbench.plots.sharpness import finished
from eqbench.results import Result

MODELS = 4  # rows, at most
ORBITS = 4  # of each model, at most: those beside which random lines rise most
CAPTION = (
    "The loss of the first seed's trained weights along random filter-normalised lines, along symmetry orbits (dotted: random lines of "
    "the same lengths), along the top eigenvectors (dotted: the parabola of their eigenvalue), and on the ways to another seed's and "
    "to the initial weights. At most four models and orbits; losses are cut off five nats above the lowest."
)
ORDERS: dict[str, tuple[str, Any]] = {
    "as it is": ("#4D4D4D", "-"),
    "matched": (PALETTE[1], "-"),
    "random": ("#999999", ":"),
}
COLUMNS = (
    "random lines",
    "symmetry orbits",
    "eigenvectors",
    "to another seed",
    "to the initial weights",
)


def draw(board: Board, titles: Titles) -> Figure | None:
    """The figure, or None for a board without its numbers; `titles` gets what its lines are."""
    found = dict(list(finished(board, "slices").items())[:MODELS])
    if not found:
        return None
    figure = Figure(figsize=(WIDTH, 1.0 + 1.45 * len(found)), layout="constrained")
    grid = figure.subplots(len(found), len(COLUMNS), squeeze=False)
    for i, ((data, model), ((_, result), *_)) in enumerate(found.items()):
        row = grid[i]
        row[0].set_ylabel(f"{data} / {model}\nloss, nat", fontsize=7)
        for axes, draw_one, title in zip(row, (_lines, _orbits, _eigen, _seed, _init), COLUMNS, strict=True):
            if i == 0:
                axes.set_title(title, fontsize=8)
            axes.locator_params(nbins=3)
            axes.tick_params(labelsize=7)
            if not draw_one(axes, result, f"{title}-{i}", f"{model} on {data}", titles):
                axes.set_axis_off()
    handles = [Line2D([], [], color=colour, linestyle=style, label=f"channels {order}")
               for order, (colour, style) in ORDERS.items()]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper right", ncols=3, fontsize=8, handletextpad=0.4)
    return figure


def _line(axes: Axes, x: list[Any], y: list[Any], gid: str, said: str, titles: Titles, **look: Any) -> None:
    """One curve; points without a number are gaps."""
    known = [v for v in y if v is not None]
    axes.plot(x, [float("nan") if v is None else v for v in y], linewidth=1.1, gid=gid, **look)
    titles[gid] = [f"{said}: {min(known):.3g} to {max(known):.3g} nat" if known else f"{said}: no finite loss"]


def _lines(axes: Axes, result: Result, gid: str, said: str, titles: Titles) -> bool:
    entries = result.curves.get("lines", [])
    for k, one in enumerate(entries):
        _line(axes, one["times"], one["losses"], f"{gid}-{k}", f"{said}, random line {k + 1}", titles,
              color=PALETTE[k % len(PALETTE)])  # fmt: skip
    return _finish(axes, entries)


def _orbits(axes: Axes, result: Result, gid: str, said: str, titles: Titles) -> bool:
    entries = sorted(result.curves.get("orbits", []), key=_height, reverse=True)[:ORBITS]
    for k, one in enumerate(entries):
        colour = PALETTE[k % len(PALETTE)]
        _line(axes, one["times"], one["losses"], f"{gid}-{k}", f"{said}, orbit {one['family']}", titles, color=colour)
        _line(axes, one["times"], one["random"], f"{gid}-{k}-random", f"{said}, as far as {one['family']}", titles,
              color=colour, linestyle=":")  # fmt: skip
    return _finish(axes, [*entries, *({"losses": one["random"]} for one in entries)])


def _height(orbit: dict[str, Any]) -> float:
    """How high the random line beside an orbit goes."""
    return max((v for v in orbit["random"] if v is not None), default=0.0)


def _eigen(axes: Axes, result: Result, gid: str, said: str, titles: Titles) -> bool:
    entries = result.curves.get("eigenvectors", [])
    for k, one in enumerate(entries):
        colour, middle = PALETTE[k % len(PALETTE)], one["losses"][len(one["losses"]) // 2]
        _line(axes, one["times"], one["losses"], f"{gid}-{k}", f"{said}, eigenvector {k + 1}", titles, color=colour)
        if middle is not None:
            parabola = [middle + one["curvature"] * t**2 / 2 for t in one["times"]]
            axes.plot(one["times"], parabola, color=colour, linewidth=0.8, linestyle=":")
    return _finish(axes, entries)


def _seed(axes: Axes, result: Result, gid: str, said: str, titles: Titles) -> bool:
    return _paths(axes, [one for one in result.curves.get("paths", []) if one["to"] != "init"], gid, said, titles)


def _init(axes: Axes, result: Result, gid: str, said: str, titles: Titles) -> bool:
    return _paths(axes, [one for one in result.curves.get("paths", []) if one["to"] == "init"], gid, said, titles)


def _paths(axes: Axes, entries: list[Any], gid: str, said: str, titles: Titles) -> bool:
    for one in entries:
        colour, style = ORDERS[one["order"]]
        times = [k / (len(one["losses"]) - 1) for k in range(len(one["losses"]))]
        _line(axes, times, one["losses"], f"{gid}-{one['order']}", f"{said}, to {one['to']}, channels {one['order']}",
              titles, color=colour, linestyle=style)  # fmt: skip
    return _finish(axes, entries)


def _finish(axes: Axes, entries: list[Any]) -> bool:
    known = [v for one in entries for v in one["losses"] if v is not None]
    if known:
        top = min(max(known), min(known) + 5)
        axes.set_ylim(-0.04 * top, 1.05 * top)
    return bool(known)
