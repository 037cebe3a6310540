"""The spectrum of a network's Hessian, trained beside untrained (no torch)."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqbench.columns import number
from eqbench.minis import Line, chart
from eqbench.panels.base import WORDS, Own, Panel
from eqbench.plots.density import smoothed
from eqbench.results import Result

POINTS = 101  # of a density


def spectrum(own: Own) -> Panel | None:
    """Density of the Hessian's eigenvalues, with those found one by one as ticks, of the first seed."""
    states: dict[str, Result] = {}
    for cell, result in own:
        if result.curves.get("eigenvalues") or result.curves.get("density_nodes"):
            states.setdefault(cell.state, result)
    if not states:
        return None
    every = [v for result in states.values() for v in _numbers(result, "eigenvalues", "smallest", "density_nodes")]
    largest = max(map(abs, every), default=0.0) or 1.0
    linear = largest * 1e-4  # as in the figure `density`, of which this is one row
    edge = math.asinh(largest / linear) + 0.5
    grid = np.linspace(-edge, edge, POINTS)
    curves = {state: curve for state, result in states.items() if (curve := _density(grid, linear, result)) is not None}
    peak = max((float(curve.max()) for curve in curves.values()), default=1.0)
    weights = [weight for result in states.values() for weight in _numbers(result, "density_weights") if weight > 0]
    floor = min(max(0.1 * min(weights, default=1e-6), 1e-9 * peak), 0.1 * peak)
    marks = [Line([0.0, 0.0], [0.0, 1.0], "frame", "λ = 0")]
    found = []
    for state in ("init", "final"):
        word = WORDS[state]
        if state in curves:
            height = np.log(np.maximum(curves[state] / floor, 1)) / math.log(peak / floor)
            marks.append(Line([*grid], [*height], f"{word} area" if state == "final" else word, f"density, {word}"))
        values = sorted(_numbers(states[state], "eigenvalues", "smallest")) if state in states else []
        if values:
            places = [math.asinh(value / linear) for value in values for _ in range(3)]
            ticks = [0.0, 0.12, None] * len(values)
            marks.append(Line(places, ticks, word, f"{word}: λ = {', '.join(map(number, values))}"))
            found.append(f"{word} {number(values[0])} to {number(values[-1])}")
    what = "Density (log) and eigenvalues" if curves else "Eigenvalues"
    title = f"{what} of the Hessian, on a symmetric log scale; {', '.join(found)}"
    scale = (number(-largest), number(largest))
    figure = chart(title, marks, (-edge, edge), (0, 1), scale, top="log density" if curves else "λ")
    note = f"Eigenvalues found: {'; '.join(found)}." if found else ""
    return Panel("spectrum", "Spectrum of the Hessian", [(f"{what} over λ (symmetric log)", figure)], note)


def _numbers(result: Result, *keys: str) -> list[float]:
    return [float(value) for key in keys for value in result.curves.get(key, []) if value is not None]


def _density(grid: NDArray[np.float64], linear: float, result: Result) -> Any:
    nodes, weights = (result.curves.get(f"density_{part}", []) for part in ("nodes", "weights"))
    if not nodes or len(nodes) != len(weights) or None in nodes or None in weights:
        return None
    return smoothed(grid, np.arcsinh(np.array(nodes, float) / linear), np.array(weights, float))
