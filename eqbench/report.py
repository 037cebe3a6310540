"""The page: one self-contained HTML file that needs no network and no JavaScript to be read (no torch)."""

import base64
import gzip
import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from eqbench.cells import MISSING, STALE
from eqbench.leaderboard import RANKED, Board
from eqbench.metrics import METRICS
from eqbench.plots import FIGURES
from eqbench.results import Status, write_text

FILES = ("index.html",)
LARGEST = 400_000  # bytes of a figure that is still put into the page; a larger one is linked
ARROWS = {True: "↑", False: "↓", None: ""}
SENSES = {True: "higher is better", False: "lower is better", None: "descriptor"}
CARD = ("family", "architecture", "parameters", "image_size", "source", "origin", "licence", "augment", "dtype")
VERSIONS = ("eqbench", "git", "torch", "timm_version", "python")


@dataclass(frozen=True)
class Column:
    """A column of numbers. `legend` names what stands below the value and, if it is bounded, its interval, in order."""

    key: str
    symbol: str
    title: str
    sense: str
    arrow: str
    shown: bool
    tip: str
    unit: str = ""
    legend: tuple[str, ...] = ()
    bounded: bool = True


def report(board: Board, out_dir: Path) -> Path:
    """Write index.html below `out_dir`, with the figures that lie in its figures/, and return its path."""
    templates = Environment(
        loader=PackageLoader("eqbench"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["math"] = _math
    source = {name: _source(templates, f"report.{name}") for name in ("css", "js")}
    script = base64.b64encode(hashlib.sha256(source["js"].encode()).digest()).decode()
    columns = list(_columns(board))
    table = board.table.astype(object).where(board.table.notna(), None)
    rows: list[dict[str, Any]] = [dict(zip(table.columns, row, strict=True)) for row in table.itertuples(index=False)]
    page = templates.get_template("report.html.j2").render(
        board=board,
        css=Markup(source["css"]),
        js=Markup(source["js"]),
        script=script,
        columns=columns,
        rows=[_row(row, columns) for row in rows],
        facets={key: _facet(rows, key) for key in ("group", "family", "data", "status")},
        models=sorted(board.facts.items()),
        cards={model: list(_card(facts)) for model, facts in board.facts.items()},
        figures=[(name, text, _figure(out_dir / "figures" / f"{name}.svg")) for name, text in FIGURES.items()],
        trouble=[(cell, board.status(cell), board.reason(cell)) for cell in _trouble(board)],
        missing=_missing(board),
        glossary=[(probe, list(own)) for probe, own in groupby(METRICS.values(), lambda metric: metric.probe)],
        senses=SENSES,
        ranked=RANKED,
        versions=_versions(board),
        csv=base64.b64encode(gzip.compress(board.csv.encode(), mtime=0)).decode(),
    )
    path = out_dir / "index.html"
    write_text(path, page)
    return path


def number(value: float | None) -> str:
    """A number for the eye: three digits, a true minus, and a dash for none.

    >>> [number(x) for x in (0.12345, -1.5, 1234.5, 2e-7, 0.0, None)]
    ['0.123', '−1.50', '1,234', '2e−7', '0', '—']
    """
    if value is None or math.isnan(value):
        return "—"
    size = abs(value)
    if size == 0 or (size >= 1 and float(value).is_integer() and size < 1000):
        text = f"{value:.0f}"
    elif size < 5e-4:
        text = f"{value:.0e}".replace("e-0", "e-")
    else:
        text = f"{value:,.{3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0}f}"
    return text.replace("-", "−")


def _source(templates: Environment, name: str) -> str:
    assert templates.loader
    return templates.loader.get_source(templates, name)[0]


def _columns(board: Board) -> Iterator[Column]:
    """The metrics that some row has, headline ones first, then what they cost."""
    found = [m for m in METRICS.values() if board.table[[m.name, f"{m.name}_init"]].notna().any(axis=None)]
    for metric in sorted(found, key=lambda metric: not metric.headline):
        better = metric.higher_is_better
        legend = [word for word in ("floor", "null") if getattr(metric, word)] + ["untrained"]
        tip = f"{metric.definition} {metric.formula}"
        yield Column(metric.name, metric.symbol, metric.title, SENSES[better], ARROWS[better], metric.headline, tip,
                     metric.unit, tuple(legend))  # fmt: skip
        if metric is RANKED:
            tip = f"{metric.symbol} trained minus {metric.symbol} untrained: what training changed."
            sense = f"{'positive' if better else 'negative'} is better"
            yield Column(f"{metric.name}_emergence", f"Δ{metric.symbol}", "Emergence", sense, ARROWS[better], True, tip)
    plain: Any = {"sense": SENSES[None], "arrow": "", "shown": False}
    yield Column("parameters", "params", "Parameters", tip="Number of weights.", bounded=False, **plain)
    tip = "Time of the row's cells; groups share forwards, so the first one measured pays."
    yield Column("seconds", "s", "Seconds", tip=tip, bounded=False, **plain)


def _math(text: str) -> Markup:
    """Plain Unicode with its sub- and superscripts set: `S_placebo`, `mean_{x, g}`, `[ … ]^½`."""
    lowered = re.sub(r"_(?:\{([^}]*)\}|(\w+))", lambda m: f"<sub>{m[1] or m[2]}</sub>", str(escape(text)))
    return Markup(re.sub(r"\^(\w+)", r"<sup>\1</sup>", lowered))


def _row(row: dict[str, Any], columns: list[Column]) -> dict[str, Any]:
    """A row of the table, as text: what the template only lays out."""
    cells = []
    for column in columns:
        below = []
        if column.bounded:
            low, high = row[f"{column.key}_lo"], row[f"{column.key}_hi"]
            below.append(f"[{number(low)}, {number(high)}]" if low is not None and high is not None else "no interval")
        if column.legend:
            keys = {"untrained": "init"}
            beside = [row[f"{column.key}_{keys.get(word, word)}"] for word in column.legend]
            below.append(" · ".join(map(number, beside)))
        if column.key == RANKED.name and row["aligned_size"] not in (None, row["image_size"]):
            below.append(f"at {row['aligned_size']:.0f} px")
        empty = row[column.key] is None and all(text in ("no interval", "—", "— · —", "— · — · —") for text in below)
        cells.append(("—", []) if empty else (number(row[column.key]), below))
    return row | {"cells": cells}


def _facet(rows: list[dict[str, Any]], key: str) -> dict[str, int]:
    """The values of a filter, families sorted and the others in the table's order, and how many rows have each."""
    counts = Counter(row[key] or "unknown" for row in rows)
    return dict(sorted(counts.items()) if key == "family" else counts)


def _card(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The facts of a model's card that are known."""
    for key in CARD:
        value = facts.get(key)
        if value is not None:
            told = [f"{name} {part}" for name, part in value.items()] if isinstance(value, dict) else [str(value)]
            text = ", ".join(told)
            yield key.replace("_", " "), f"{value:,}" if key == "parameters" and isinstance(value, int) else text
    if made := _made_with(facts):
        yield "measured with", made


def _made_with(facts: dict[str, Any]) -> str:
    """The versions that numbers were made with, in words."""
    known = [f"{key.removesuffix('_version')} {str(facts[key])[:12]}" for key in VERSIONS if facts.get(key)]
    return ", ".join(known) + (" (with uncommitted changes)" if facts.get("dirty") else "")


def _figure(path: Path) -> Markup | str | None:
    """The figure itself; its place beside the page, if it is too large; None, if it is not drawn."""
    if not path.exists():
        return None
    text = path.read_text(errors="replace")
    return Markup(text) if len(text) <= LARGEST else f"figures/{path.name}"


def _trouble(board: Board) -> list[Any]:
    troubles = (str(Status.failed), STALE, str(Status.skipped))
    return [cell for cell in board.plan.cells if board.status(cell) in troubles]


def _missing(board: Board) -> dict[str, int]:
    """Per model, how many cells are not run."""
    return Counter(cell.model for cell in board.plan.cells if board.status(cell) == MISSING)


def _versions(board: Board) -> list[str]:
    """Every combination of versions, device and day that the numbers were made with."""
    made = [(result.provenance, result.cost) for result in board.results.values() if result.provenance]
    return sorted({f"{_made_with(p)}, on {c.get('device')}, {str(p.get('started'))[:10]}" for p, c in made})
