"""The page: one self-contained HTML file that needs no network and no JavaScript to be read (no torch)."""

import base64
import gzip
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from eqbench.analysis import FEWEST, analyse, table
from eqbench.cells import MISSING
from eqbench.columns import ARROWS, SENSES, by_theme, embedded, number, tables
from eqbench.coverage import troubles
from eqbench.findings import compared, findings
from eqbench.leaderboard import Board
from eqbench.metrics import METRICS, Metric
from eqbench.plots import EMPTY, FIGURES
from eqbench.results import CSV, write_text
from eqbench.sections import made_with, sections
from eqbench.treatments import told_together

FILES = ("index.html", "analysis.csv")
# Of the page's style and script, in templates/.
SOURCES = {"css": ("report", "findings", "models"), "js": ("report", "compare")}
LARGEST = 400_000  # bytes of a figure that is still put into the page; a larger one is linked
LISTED = 200  # correlations of a page; the others are in analysis.csv
SHOWN = 300  # treatments of a page, and ensembles; the others are in their files
PAGE = 4_900_000  # bytes of a page: where it would have more, its largest figures are linked

Figures = dict[str, Markup | str | None]  # name -> its drawing, its place beside the page, or None if it is not drawn


def report(board: Board, out_dir: Path, weights_dir: Path | None = None) -> Path:
    """Write index.html below `out_dir`, with the figures that lie in its figures/, and analysis.csv; return the page's path.

    Args:
        weights_dir: where the cards of the weights lie; without them there are no learning curves and no recipes.
    """
    templates = Environment(
        loader=PackageLoader("eqbench"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["math"] = _math
    templates.filters["number"] = number
    source = {kind: "".join(_source(templates, f"{name}.{kind}") for name in names) for kind, names in SOURCES.items()}
    script = base64.b64encode(hashlib.sha256(source["js"].encode()).digest()).decode()
    found = tables(board)
    rows = [row for table in found for row in table.rows]
    drawn = {name: _figure(out_dir / "figures" / f"{name}.svg") for name in FIGURES}
    analysed = analyse(board)
    told = {
        "analysis": analysed,
        "fewest": FEWEST,
        "listed": LISTED,
        "board": board,
        "compared": compared(board),
        "findings": findings(board),
        "gains": board.gains,
        "treatments": board.contrasts,
        "treatments_told": told_together(board.contrasts),
        "shown": SHOWN,
        "css": Markup(source["css"]),
        "js": Markup(source["js"]),
        "script": script,
        "tables": found,
        "rows": len(rows),
        "choices": by_theme(found),
        "facets": {key: _facet(rows, key) for key in ("group", "family", "treatment", "data", "status")},
        "models": sorted(board.facts.items()),
        "empty": [name for name, figure in drawn.items() if EMPTY in (figure or "")],
        "trouble": troubles(board),
        "missing": _missing(board),
        "glossary": _glossary(),
        "senses": SENSES,
        "arrows": ARROWS,
        "sections": sections(board, weights_dir),
        "versions": _versions(board),
        "data": _packed(embedded(board, found)),
    }
    inside = {name: figure for name, figure in drawn.items() if EMPTY not in (figure or "")}
    template = templates.get_template("report.html.j2")
    page = _fitted(
        inside, lambda own: template.render(told, figures=[(k, FIGURES[k], figure) for k, figure in own.items()])
    )
    write_text(out_dir / FILES[1], table(board.plan.name, analysed).to_csv(**CSV))
    path = out_dir / FILES[0]
    write_text(path, page)
    return path


def _fitted(figures: Figures, render: Callable[[Figures], str]) -> str:
    """The page with all its figures; if it is too large, with links to the largest of them."""
    page = render(figures)
    over = len(page.encode()) - PAGE
    for name in sorted(figures, key=lambda name: -len(figures[name] or "")):
        if over > 0 and isinstance(figures[name], Markup):
            over -= len(str(figures[name]).encode())
            figures = figures | {name: f"figures/{name}.svg"}
    return render(figures) if len(page.encode()) > PAGE else page


def _packed(data: dict[str, list[Any]]) -> str:
    """JSON, compressed, as text: it travels in the page, for its script and the CSV that it writes."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _source(templates: Environment, name: str) -> str:
    assert templates.loader
    return templates.loader.get_source(templates, name)[0]


def _math(text: str) -> Markup:
    """Plain Unicode with its sub- and superscripts set: `S_placebo`, `mean_{x, g}`, `[ … ]^½`, `e^{−t}`."""
    marked = str(escape(text))
    for sign, tag in (("_", "sub"), ("^", "sup")):
        pattern = rf"{re.escape(sign)}(?:\{{([^{{}}]*)\}}|([−+]?\w+|[✓∗†]))"
        while re.search(pattern, marked):
            marked = re.sub(pattern, rf"<{tag}>\1\2</{tag}>", marked)
    return Markup(marked)


def _glossary() -> dict[str, list[Metric]]:
    """The metrics by probe, in the order of metrics."""
    probes: dict[str, list[Metric]] = {}
    for metric in METRICS.values():
        probes.setdefault(metric.probe, []).append(metric)
    return probes


def _facet(rows: list[dict[str, Any]], key: str) -> dict[str, int]:
    """The values of a filter, families sorted and the others in the table's order, and how many rows have each."""
    counts = Counter(row[key] or "unknown" for row in rows)
    return dict(sorted(counts.items()) if key == "family" else counts)


def _figure(path: Path) -> Markup | str | None:
    """The figure itself; its place beside the page, if it is too large; None, if it is not drawn."""
    if not path.exists():
        return None
    text = path.read_text(errors="replace")
    return Markup(text) if len(text) <= LARGEST else f"figures/{path.name}"


def _missing(board: Board) -> dict[str, int]:
    """Per model, how many cells are not run."""
    return Counter(cell.model for cell in board.plan.cells if board.status(cell) == MISSING)


def _versions(board: Board) -> list[str]:
    """Every combination of versions, device and day that the numbers were made with."""
    made = [(result.provenance, result.cost) for result in board.results.values() if result.provenance]
    return sorted({f"{made_with(p)}, on {c.get('device')}, {str(p.get('started'))[:10]}" for p, c in made})
