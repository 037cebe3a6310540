"""What the figures share: style, panels, colours of models, legends (no torch)."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from eqbench.leaderboard import Board
from eqbench.metrics import METRICS, Metric

WIDTH = 9.6  # inches
MARKS = 1500  # of a figure, up to which each has its interval and a title
# Okabe and Ito's colour-blind-safe palette without its yellow; a board with more models is coloured by family.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C00", "#4D4D4D")
MARKERS = "osD^vPX*"
STYLE: Any = {  # the stubs allow only literal keys
    "svg.fonttype": "none",
    "svg.hashsalt": "eqbench",
    "pdf.fonttype": 42,  # TrueType: journals refuse Type 3
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.axisbelow": True,
    "hatch.linewidth": 0.6,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}

Titles = dict[str, Sequence[str]]  # gid of an artist -> what its marks are, in drawing order
Colours = dict[str, tuple[str, str, str]]  # model -> colour, marker, entry in the legend


def colours_of(board: Board) -> Colours:
    """A colour and a marker a model; a family, where there are more models than colours."""
    families = {model: str(facts.get("family") or "unknown") for model, facts in sorted(board.facts.items())}
    labels = families if len(families) > len(PALETTE) else {model: model for model in families}
    looks = {}
    for i, label in enumerate(sorted(set(labels.values()))):  # colours recur after eight, with other markers
        looks[label] = (PALETTE[i % len(PALETTE)], MARKERS[(i + i // len(PALETTE)) % len(MARKERS)])
    return {model: (*looks[label], label) for model, label in labels.items()}


def panels(
    blocks: Sequence[Sequence[str]], *, height: float = 2.65, share: bool = True
) -> tuple[Figure, dict[str, Axes]]:
    """A grid of at most four panels a row, one a name; a block starts a row, and its panels `share` their axes."""
    columns = min(4, max(map(len, blocks)))
    rows = [[block[i : i + columns] for i in range(0, len(block), columns)] for block in blocks]
    count = sum(map(len, rows))
    figure = Figure(figsize=(max(WIDTH * columns / 4, 6), height * count + 0.75), layout="constrained")
    places = iter(range(count))
    found: dict[str, Axes] = {}
    for block in rows:
        first: Axes | None = None
        for row, place in zip(block, places, strict=False):
            for j, name in enumerate(row):
                axes = figure.add_subplot(count, columns, place * columns + j + 1, sharex=first, sharey=first)
                if share:
                    first = first or axes
                    axes.tick_params(labelleft=j == 0)
                axes.set_title(name)
                axes.grid(axis="y")
                found[name] = axes
    return figure, found


def rankings(table: pd.DataFrame, init: bool = False) -> dict[Metric, pd.DataFrame]:
    """The rows that each ranking metric has a number for (`init`: the untrained network, too), in the order of metrics.

    Of the board's columns they have those that say which row it is, and the metric's own.
    """
    found = {}
    for name, metric in METRICS.items():
        own = [f"{name}{state}{end}" for state in ("", "_init") for end in ("", "_lo", "_hi", "_null")]
        rows = table[["model", "data", "group", *own]][table["ranked_by"] == name]
        rows = rows.dropna(subset=[name, f"{name}_init"] if init else [name])
        if len(rows):
            found[metric] = rows
    return found


def by_label(rows: pd.DataFrame, colours: Colours) -> list[tuple[str, str, pd.DataFrame]]:
    """(colour, marker, its rows) for each entry of the legend, sorted: few artists, however many models."""
    labels = rows["model"].map(lambda model: colours[str(model)][2])
    return [(*colours[str(own["model"].iloc[0])][:2], own) for _, own in rows.groupby(labels, sort=True)]


def mark(marker: str, colour: str, label: str, *, hollow: bool = False, line: bool = False) -> Line2D:
    """An entry of a legend."""
    face = "white" if hollow else colour
    return Line2D([], [], color=colour, marker=marker, linestyle="-" if line else "", markersize=5.5,
                  markerfacecolor=face, label=label)  # fmt: skip


def legend(
    figure: Figure, colours: Colours, shown: Iterable[str], more: Sequence[Artist], *, line: bool = False
) -> None:
    """One legend above the panels: the models (or families) shown, then `more`."""
    entries = {label: mark(marker, colour, label, line=line) for colour, marker, label in
               (colours[model] for model in sorted(set(shown)))}  # fmt: skip
    handles = [*entries.values(), *more]
    sizes = [len(str(handle.get_label())) + 6 for handle in handles]
    room = int(140 * figure.get_figwidth() / WIDTH)
    columns = len(handles) if sum(sizes) <= room else max(1, room // max(sizes))
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, fontsize=8, handletextpad=0.4)


class Marks:
    """Marks of one axes, each with its title, drawn as one artist a kind: as fast for 200 models as for two."""

    def __init__(self, axes: Axes, gid: str) -> None:
        self._axes, self._gid = axes, gid
        self._kinds: dict[tuple[str, float], list[tuple[float, float, str, str, str]]] = {}

    def add(
        self, x: float, y: float, shape: str, size: float, colour: str, title: str, *, hollow: bool = False
    ) -> None:
        """A mark of `size` points squared."""
        self._kinds.setdefault((shape, size), []).append((x, y, colour, "white" if hollow else colour, title))

    def draw(self, titles: Titles, linewidth: float = 1.5) -> None:
        """Draw all, and say in `titles` what each is."""
        for i, ((shape, size), marks) in enumerate(self._kinds.items()):
            x, y, edges, faces, said = zip(*marks, strict=True)
            gid = f"{self._gid}-{i}"
            looks: dict[str, Any] = {"color": edges} if shape == "x" else {"edgecolor": edges, "facecolor": faces}
            self._axes.scatter(x, y, size, marker=shape, linewidth=linewidth, gid=gid, zorder=3, **looks)
            titles[gid] = said


def listed(layers: Iterable[str], values: Iterable[float]) -> str:
    """`blocks.0 0.12, blocks.1 0.3`: what a line over depth goes through."""
    known = [f"{layer} {value:.3g}" for layer, value in zip(layers, values, strict=True) if not math.isnan(value)]
    return ", ".join(known)


def words(text: str) -> Figure:
    """A figure that says why there is none."""
    figure = Figure(figsize=(WIDTH, 0.9))
    figure.text(0.5, 0.5, text, ha="center", va="center", color="#555555", fontsize=10)
    return figure
