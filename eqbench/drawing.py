"""What the figures share: style, panels, colours of models, and SVG whose bytes depend on nothing but the data (no torch)."""

import html
import io
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from eqbench.leaderboard import Board

WIDTH = 9.6  # inches
# Okabe and Ito's colour-blind-safe palette without its yellow; a board with more models is coloured by family.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C00", "#4D4D4D")
MARKERS = "osD^vPX*"
STYLE: Any = {  # the stubs allow only literal keys
    "svg.fonttype": "none",
    "svg.hashsalt": "eqbench",
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


def panels(names: Iterable[str]) -> tuple[Figure, dict[str, Axes]]:
    """A grid of at most four panels a row with common axes, one a name."""
    keys = list(names)
    columns = min(4, len(keys))
    rows = math.ceil(len(keys) / columns)
    figure = Figure(figsize=(max(WIDTH * columns / 4, 6), 2.65 * rows + 0.75), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(keys) :]:
        axes.set_visible(False)
    found = dict(zip(keys, grid.flat, strict=False))
    for key, axes in found.items():
        axes.set_title(key)
        axes.grid(axis="y")
    return figure, found


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
    figure: Figure, colours: Colours, shown: Iterable[str], more: Sequence[Line2D], *, line: bool = False
) -> None:
    """One legend above the panels: the models (or families) shown, then `more`."""
    entries = {label: mark(marker, colour, label, line=line) for colour, marker, label in
               (colours[model] for model in sorted(set(shown)))}  # fmt: skip
    handles = [*entries.values(), *more]
    sizes = [len(str(handle.get_label())) + 6 for handle in handles]
    columns = len(handles) if sum(sizes) <= 140 else max(1, 140 // max(sizes))
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, fontsize=8, handletextpad=0.4)


def words(text: str) -> Figure:
    """A figure that says why there is none."""
    figure = Figure(figsize=(WIDTH, 0.9))
    figure.text(0.5, 0.5, text, ha="center", va="center", color="#555555", fontsize=10)
    return figure


def svg(figure: Figure, name: str, title: str, description: str, titles: Titles) -> str:
    """The figure as SVG text: no date, its own ids, a <title> and <desc>, and a <title> on each mark of `titles`.

    Ids are prefixed with `name`, so that several figures can stand in one page.
    """
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for gid, labels in titles.items():
        text = _entitle(text, gid, labels)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", text)
    text = re.sub(r"<style type=\"text/css\">\*", f'<style type="text/css">#{name} *', text)
    text = re.sub(r"\n\s*", "\n", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL))
    head = f'id="{name}" role="img" aria-labelledby="{name}-title {name}-desc"'
    said = (
        f'<title id="{name}-title">{html.escape(title)}</title><desc id="{name}-desc">{html.escape(description)}</desc>'
    )
    return re.sub(r"<svg ([^>]*)>", lambda match: f"<svg {head} {match[1]}>\n{said}", text, count=1)


def _entitle(text: str, gid: str, labels: Sequence[str]) -> str:
    """Give the marks of the group `gid` their titles: one for the group, or one for each <use> in it."""
    start = text.find(f'<g id="{gid}">')
    if start < 0:
        return text
    head = start + len(f'<g id="{gid}">')
    tags = [f"<title>{html.escape(label)}</title>" for label in labels]
    if len(tags) == 1:
        return text[:head] + tags[0] + text[head:]
    end, depth = head, 1
    while depth:  # the group's own closing tag
        step = re.compile(r"<(/?)g\b").search(text, end)
        assert step
        depth += -1 if step[1] else 1
        end = step.end()
    left = iter(tags)
    body = re.sub(r"<use ([^>]*)/>", lambda m: f"<use {m[1]}>{next(left, '')}</use>", text[head:end])
    return text[:head] + body + text[end:]
