"""Numbers over training: a row a number, a column an architecture, a line a recipe with its seeds as a band (no torch)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from eqbench.leaderboard import Board
from eqbench.lineage import PLAIN, place
from eqbench.metrics import METRICS
from eqbench.minis import thinned
from eqbench.plots.drawing import MARKERS, PALETTE, WIDTH, Titles, legend
from eqbench.pooling import Row
from eqbench.schema import UNGROUPED
from eqbench.trajectories import Curve, curve

ARCHITECTURES, LINES, GROUPS = 4, 8, 4  # of a figure, at most: columns; lines of a column; groups of a number
POINTS = 40  # of a line
TOLD = 10  # points up to which a line's title lists them
READ = (
    "a line a recipe with its 95 % interval over images and seeds, over epochs on a logarithmic axis that begins with the "
    f"untrained network; a column an architecture where one has several recipes, at most {ARCHITECTURES} (those with most recipes) "
    f"of {LINES} lines, else one column of at most {LINES} networks"
)


@dataclass(frozen=True)
class Strip:
    """A row of panels.

    Attributes:
        label, title: the number's symbol and what else tells it from others; its title.
        curves: model -> its numbers. limits: model -> (epoch, value) of a line that they are read against.
        log: whether values may stand on a logarithmic axis.
    """

    label: str
    title: str
    curves: dict[str, Curve]
    log: bool = False
    limits: dict[str, list[tuple[int, float]]] = field(default_factory=dict)


def strips(board: Board, names: Sequence[str], most: int = GROUPS, *, alike: bool = False) -> Iterator[Strip]:
    """A strip for each data set and group, at most so many, of the first of these metrics that has a trajectory there.

    Args:
        alike: whether groups do not decide the numbers: a strip is then of a data set, and a network's curve that of the
            first group under which it has one.
    """
    places: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in board.rows:
        if row[0] in board.epochs:
            places.setdefault((row[1], UNGROUPED if alike else row[2]), {}).setdefault(row[0], []).append(row)
    several = len({data for data, _ in places}) > 1
    for (data, group), models in places.items():
        if not most:
            return
        for name in names:
            curves = {model: (curve(board, row, name) for row in rows) for model, rows in models.items()}
            found = {
                model: points for model, own in curves.items() if (points := next((p for p in own if len(p) > 2), None))
            }
            if found:
                where = [group] * (group != UNGROUPED) + [data] * several
                yield Strip(", ".join([METRICS[name].symbol, *where]), METRICS[name].title, found)
                most -= 1
                break


def drawn(board: Board, titles: Titles, found: Sequence[Strip]) -> Figure | None:
    """The figure of these strips, or None where there are none; `titles` gets what its marks are."""
    shown = {model for strip in found for model in strip.curves}
    if not shown:
        return None
    columns = _columns(board, sorted(shown))
    looks = _looks(board, columns)
    figure = Figure(figsize=(min(WIDTH, max(5.2, 2.6 * len(columns))), 1.45 * len(found) + 0.95), layout="constrained")
    grid = figure.subplots(len(found), len(columns), sharex="col", sharey="row", squeeze=False)
    for i, strip in enumerate(found):
        for j, (title, models) in enumerate(columns):
            axes, own = grid[i, j], [model for model in models if model in strip.curves]
            for model in own:
                _line(axes, strip, model, looks[model], f"line-{i}-{j}-{models.index(model)}", titles)
            axes.grid(axis="y")
            if not i:
                axes.set_title(title, fontsize=8.5)
        grid[i, 0].set_ylabel(f"{strip.title}\n{strip.label}", fontsize=7.5)
        _ends(grid[i, 0], strip, [model for _, models in columns for model in models if model in strip.curves])
    for j, (_, models) in enumerate(columns):
        last = max(max(board.epochs[model].values()) for model in models)
        ticks = _ticks(last)
        grid[-1, j].set_xticks([place(epoch) for epoch in ticks], [str(epoch) for epoch in ticks])
        grid[-1, j].set_xlim(-0.15, place(last) + 0.15)
    figure.supxlabel("Epochs of training (0: untrained)", fontsize=9)
    more = [Line2D([], [], color="#666666", linestyle="--", linewidth=1, label="largest stable curvature of SGD")]
    limited = any(strip.limits for strip in found)
    legend(figure, looks, [model for _, models in columns for model in models], more * limited, line=True)
    return figure


def _line(axes: Axes, strip: Strip, model: str, look: tuple[str, str, str], gid: str, titles: Titles) -> None:
    points, (colour, marker, _) = thinned(strip.curves[model], POINTS), look
    known = [(place(epoch), m.lo, m.hi) for epoch, m in points if m.lo is not None and m.hi is not None]
    if known:
        xs, lows, highs = zip(*known, strict=True)
        if strip.log:  # there is no place below 0 on a logarithmic axis
            lows = tuple(max(low, 1e-3 * high) for low, high in zip(lows, highs, strict=True))
        axes.fill_between(xs, lows, highs, color=colour, alpha=0.15, linewidth=0)
    values = [float(m.value) for _, m in points if m.value is not None]
    axes.plot([place(epoch) for epoch, _ in points], values, color=colour, marker=marker, markersize=3.2, linewidth=1.3,
              gid=gid)  # fmt: skip
    limit = strip.limits.get(model)
    if limit:
        axes.plot([place(epoch) for epoch, _ in limit], [value for _, value in limit], color=colour, linestyle="--",
                  linewidth=0.9)  # fmt: skip
    pairs = list(zip((epoch for epoch, _ in points), values, strict=True))
    listed = ", ".join(
        f"epoch {e} {value:.3g}" for e, value in (pairs if len(pairs) <= TOLD else (pairs[0], pairs[-1]))
    )
    titles[gid] = [f"{model}, {strip.title} {strip.label}: {listed}"]


def _ends(axes: Axes, strip: Strip, models: Sequence[str]) -> None:
    """Ends of the axis that its strip shares: by the lines; bands may be cut, so that two seeds do not flatten the rest."""
    values = [m.value for model in models for _, m in strip.curves[model] if m.value is not None]
    if not values:
        return
    low, high = min(values), max(values)
    if strip.log and low > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter("")
        axes.set_ylim(low / 1.6, high * 1.6)
        return
    room = 0.25 * (high - low) or 0.05
    axes.set_ylim(0 if 0 <= low < 0.6 * high else low - room, high + room)
    if low < 0 < high:
        axes.axhline(0, color="#888888", linewidth=0.8, zorder=1)


def _columns(board: Board, models: Sequence[str]) -> list[tuple[str, list[str]]]:
    """(Title, models): an architecture a column, those with most recipes first; one column, if none has a second recipe."""
    by: dict[str, list[str]] = {}
    for model in models:
        by.setdefault(board.kinds[model].built, []).append(model)
    if max(map(len, by.values())) == 1:
        return [("", list(models[:LINES]))]
    found = []
    for own in sorted(by.values(), key=lambda own: (-len(own), own))[:ARCHITECTURES]:
        own = sorted(own, key=lambda model: (board.kinds[model].treatment != PLAIN, model))
        found.append((f"{own[0]}\n{board.kinds[own[0]].architecture}", own[:LINES]))
    return found


def _looks(board: Board, columns: Sequence[tuple[str, list[str]]]) -> dict[str, tuple[str, str, str]]:
    """Model -> colour, marker and entry in the legend: its treatment, the same in all columns; its name, where that is no name."""
    labels: dict[str, str] = {}
    for title, models in columns:
        taken: set[str] = set()
        for model in models:
            share = (board.facts[model].get("recipe") or {}).get("fraction") or 1
            label = board.kinds[model].treatment + (f", {share:.0%} of the images" if share < 1 else "")
            labels[model] = label if title and label not in taken else model
            taken.add(label)
    order = sorted(set(labels.values()), key=lambda label: (label != PLAIN, label))
    looks = {
        label: (PALETTE[i % len(PALETTE)], MARKERS[(i + i // len(PALETTE)) % len(MARKERS)])
        for i, label in enumerate(order)
    }
    return {model: (*looks[label], label) for model, label in labels.items()}


def _ticks(last: int) -> list[int]:
    """0, 1, 2, 4, ... and the last epoch; every other one where they would touch."""
    powers = [2**k for k in range(math.ceil(math.log2(max(last, 2)))) if 2**k < 0.75 * last]
    step = 1 + len(powers) // 6
    return [0, *powers[::step], last]
