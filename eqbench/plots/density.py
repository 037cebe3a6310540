"""The spectral density of each model's Hessian, untrained above trained (no torch)."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eqbench.leaderboard import Board
from eqbench.plots.drawing import WIDTH, Titles, colours_of
from eqbench.results import Status

CAPTION = (
    "Spectral density of the Hessian of every model's first seed, untrained above trained: the share of all directions (log scale) with "
    "that curvature (symmetric log scale), by Lanczos quadrature, smoothed. "
    "Islands far from 0 are the few sharp directions; of a large board its first 40 models are shown, by name."
)
MODELS = 40  # that a figure shows: rows of more are out of anybody's sight
POINTS, SMOOTHING = 161, 0.12  # of a curve; width of the Gaussian, on the symmetric log scale in units of e


def draw(board: Board, titles: Titles) -> Figure | None:
    """The figure, or None for a board without its numbers; `titles` gets what its marks are."""
    found: dict[tuple[str, str], dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]] = {}
    for cell, result in sorted(board.results.items(), key=lambda item: str(item[0])):
        nodes, weights = (_numbers(result.curves.get(f"density_{part}", [])) for part in ("nodes", "weights"))
        if result.status is Status.ok and cell.state in ("init", "final") and len(nodes) and len(nodes) == len(weights):
            found.setdefault((board.plan.data(cell), cell.model), {}).setdefault(cell.state, (nodes, weights))
    if not found:
        return None
    largest = max(float(abs(nodes).max()) for states in found.values() for nodes, _ in states.values()) or 1.0
    linear = largest * 1e-4
    ends = math.asinh(largest / linear) + 4 * SMOOTHING
    grid = np.linspace(-ends, ends, POINTS)
    curves = {
        key: {state: smoothed(grid, np.arcsinh(nodes / linear), weights) for state, (nodes, weights) in states.items()}
        for key, states in found.items()
    }
    # A tenth of one direction's share, which is the weight of the largest eigenvalue.
    floor = 0.1 * min(float(weights[nodes.argmax()]) for states in found.values() for nodes, weights in states.values())
    height = max(math.log(float(curve.max()) / floor) for states in curves.values() for curve in states.values())
    rows = [(key, state) for key in sorted(curves)[:MODELS] for state in ("init", "final") if state in curves[key]]
    figure = Figure(figsize=(WIDTH, 1.0 + 0.42 * len(rows)), layout="constrained")
    axes, colours = figure.subplots(), colours_of(board)
    for i, (key, state) in enumerate(rows):
        rise = 0.92 * np.log(np.maximum(curves[key][state] / floor, 1)) / height
        colour, word = colours[key[1]][0], {"init": "untrained", "final": "trained"}[state]
        axes.fill_between(grid, i, i - rise, color=colour, alpha=0.25 if state == "init" else 0.75, linewidth=0.8,
                          gid=f"density-{i}")  # fmt: skip
        nodes = found[key][state][0]
        titles[f"density-{i}"] = [f"{key[1]} on {key[0]}, {word}: λ from {nodes.min():.3g} to {nodes.max():.3g}"]
    axes.set_yticks(range(len(rows)), [f"{data} / {model}, {'un' * (state == 'init')}trained"
                                       for (data, model), state in rows])  # fmt: skip
    axes.set_ylim(len(rows) - 0.7, -1.05)
    decades = [10.0**k for k in range(math.ceil(math.log10(linear)), math.floor(math.log10(largest)) + 1, 2)]
    ticks = [-tick for tick in reversed(decades)] + [0.0, *decades]
    axes.set_xticks([math.asinh(tick / linear) for tick in ticks], [f"{tick:g}".replace("-", "−") for tick in ticks])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.set_xlabel("Hessian eigenvalue λ, symmetric log scale")
    return figure


def _numbers(curve: Sequence[float | None]) -> NDArray[np.float64]:
    """A curve's numbers, none if it has a gap."""
    return np.array([] if any(value is None for value in curve) else curve, dtype=np.float64)


def smoothed(
    grid: NDArray[np.float64], places: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """sum_j w_j exp(-(x - x_j)^2 / 2s^2): a lone atom peaks at its own weight."""
    kernel = np.exp(-(((grid[:, None] - places) / SMOOTHING) ** 2) / 2)
    return np.asarray(kernel @ weights)
