"""The certificate of a network's symmetries as a table (no torch)."""

from collections.abc import Iterable
from typing import Any

from markupsafe import Markup

from eqbench.columns import number
from eqbench.metrics.symmetries import CONTROL
from eqbench.panels.base import WORDS, Own, Panel
from eqbench.plots.certificate import GATES, NAMES

HEADS = ("Family", "found", "refuted", "null directions", "residual, float64", "float32")
COUNTS = ("confirmed", "refuted", "null")
RESIDUALS = {"r2": GATES["float64"], "r2_single": GATES["float32"]}


def certificate(own: Own) -> Panel | None:
    """Families of symmetries, what was found of each and how exactly it holds: the worst over seeds and states."""
    cells = [(cell, result) for cell, result in own if cell.probe == "symmetries" and result.curves.get("families")]
    rows: dict[str, list[dict[str, Any]]] = {}
    for _, result in cells:
        for row in result.curves["families"]:
            rows.setdefault(row["family"], []).append(row)
    if not rows:
        return None
    order = [*NAMES]
    families = sorted(rows, key=lambda name: (name == CONTROL, order.index(name) if name in NAMES else len(order)))
    lines = Markup("").join(_line(family, rows[family]) for family in families)
    heads = Markup("").join(Markup('<th scope="col">{}').format(word) for word in HEADS)
    table = Markup('<table class="plain"><thead><tr>{}</thead><tbody>\n{}</tbody></table>').format(heads, lines)
    measured = ", ".join(f"{cell.seed} {WORDS[cell.state]}" for cell, _ in cells)
    gates = " and ".join(f"{gate:.0e} in {name}" for name, gate in GATES.items()).replace("-", "−")
    control = _worst(rows.get(CONTROL, []), "r2")
    beside = "" if control is None else f"; the control, no symmetry, must miss them and has {number(control)}"
    return Panel("certificate", "Certificate of symmetries", [], f"Worst of {measured}. Gates: {gates}{beside}.", table)


def _line(family: str, rows: list[dict[str, Any]]) -> Markup:
    counts = [max(int(row.get(key) or 0) for row in rows) for key in COUNTS]
    cells = Markup("").join(Markup("<td>{}").format(count or "—") for count in counts)
    for key, gate in RESIDUALS.items():
        worst = _worst(rows, key)
        missed = family != CONTROL and worst is not None and worst > gate
        cells += Markup("<td{}>{}{}").format(
            Markup(' class="failed"') if missed else "", number(worst), " misses its gate" if missed else ""
        )
    return Markup('<tr><th scope="row">{} {}{}\n').format(family, NAMES.get(family, ""), cells)


def _worst(rows: Iterable[dict[str, Any]], key: str) -> float | None:
    return max((float(row[key]) for row in rows if row.get(key) is not None), default=None)
