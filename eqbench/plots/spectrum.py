"""The extreme Hessian eigenvalues of each model, untrained above trained (no torch)."""

import math

from matplotlib.artist import Artist
from matplotlib.figure import Figure

from eqbench.leaderboard import Board
from eqbench.metrics import METRICS
from eqbench.plots.drawing import WIDTH, Marks, Titles, colours_of, mark
from eqbench.results import Status

CAPTION = (
    "Largest Hessian eigenvalues (circles) and the smallest (triangles), untrained above trained, every seed. "
    "Compare states of one architecture, not architectures."
)


def draw(board: Board, titles: Titles) -> Figure | None:
    """The figure, or None for a board without its numbers; `titles` gets what its marks are."""
    found: dict[tuple[str, str], list[tuple[str, str, str, float]]] = {}
    for cell, result in board.results.items():
        if result.status is Status.ok and cell.state in ("init", "final"):
            for shape, curve in (("o", "eigenvalues"), ("v", "smallest")):
                values = [(cell.state, shape, cell.seed, float(value)) for value in result.curves.get(curve, [])]
                if values:
                    found.setdefault((board.plan.data(cell), cell.model), []).extend(values)
    if not found:
        return None
    colours = colours_of(board)
    figure = Figure(figsize=(WIDTH, 1.1 + 0.6 * len(found)), layout="constrained")
    axes = figure.subplots()
    kinds: list[Artist] = []
    marks = Marks(axes, "values")
    for state, offset, word in (("init", -0.17, "untrained"), ("final", 0.17, "trained")):
        for shape, size in (("o", "largest"), ("v", "smallest")):
            kinds.append(mark(shape, "#666666", f"{size}, {word}", hollow=state == "init"))
            for i, ((data, model), values) in enumerate(sorted(found.items())):
                for *kind, seed, value in values:
                    if kind == [state, shape]:
                        title = f"{model} on {data}, {seed}, {word}: λ = {value:.4g}"
                        marks.add(value, i + offset, shape, 24, colours[model][0], title, hollow=state == "init")
    marks.draw(titles)
    sizes = [abs(value) for values in found.values() for *_, value in values if value]
    axes.set_xscale("symlog", linthresh=10.0 ** math.floor(math.log10(min(sizes, default=1.0))))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
    axes.axvline(0, color="#888888", linewidth=0.8)
    axes.set_yticks(range(len(found)), [f"{data} / {model}" for data, model in sorted(found)])
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    symbols = f"{METRICS['lambda_min'].symbol} … {METRICS['lambda_max'].symbol}"
    axes.set_xlabel(f"Hessian eigenvalues {symbols}, symmetric log scale")
    figure.legend(handles=kinds, loc="outside upper left", ncols=4, fontsize=8, handletextpad=0.4)
    return figure
