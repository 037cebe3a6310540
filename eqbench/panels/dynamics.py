"""What was recorded while a network trained: its sharpness, and what its steps obeyed (no torch)."""

import math
from dataclasses import replace
from typing import Any

from eqbench.columns import number
from eqbench.metrics.symmetries import CONTROL
from eqbench.minis import Line, chart
from eqbench.panels.base import SERIES, Own, Panel, ends


def dynamics(own: Own) -> Panel | None:
    """Sharpness beside the edge of stability, and identities of the gradient beside the control, a line a seed."""
    found = [
        (cell.seed, result.curves) for cell, result in own if cell.probe == "dynamics" and result.curves.get("steps")
    ]
    if not found:
        return None
    sharp, obeyed, notes = [], [], []
    for k, (seed, curves) in enumerate(found):
        look, steps = f"s{k % SERIES}", curves["steps"]
        at = [entry["update"] for entry in steps]
        top, edge, aligned = ([e[key] for e in steps] for key in ("lambda_max", "threshold", "alignment"))
        sharp.append(Line(at, _logs(top), look, f"{seed}: λ {ends(top)}"))
        if any(value is not None for value in edge):
            sharp.append(Line(at, _logs(edge), f"{look} dotted", f"{seed}: edge of stability {ends(edge)}"))
        for one in curves["families"]:
            dotted = " dotted" if one["family"] == CONTROL else ""
            title = f"{seed}: {one['family']}, {ends(one['identity'])}"
            obeyed.append(Line(at, _logs(one["identity"]), look + dotted, title))
        notes.append(f"{seed}: gradient along the sharpest direction {ends(aligned)}")
    charts = []
    for title, lines in (
        ("Sharpness on a fixed batch (log; dotted: the edge of stability)", sharp),
        ("Identities of the gradient, a line a family (log; dotted: the control)", obeyed),
    ):
        values = [v for line in lines if title[0] == "I" or "dotted" not in line.look for v in line.y if v is not None]
        if values:
            low, high = min(values), max(values) + math.log10(2)
            span = (lines[0].x[0], lines[0].x[-1])
            labels = (f"update {span[0]:.0f}", f"{span[1]:.0f}")
            raised = [replace(line, y=[None if v is None else v - low for v in line.y]) for line in lines]
            scale = f"{number(10**low)} to {number(10**high)}"
            charts.append((title, chart(title, raised, span, (0, high - low), labels, top=scale)))
    return Panel("dynamics", "Dynamics of training", charts, f"{'; '.join(notes)}.") if charts else None


def _logs(curve: list[Any]) -> list[float | None]:
    return [math.log10(v) if v is not None and v > 0 else None for v in curve]
