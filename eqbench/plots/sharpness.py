"""The sharpness of every model before and after its weights are balanced, and how much of its curvature is in kinks (no torch)."""

from collections.abc import Iterator

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from eqbench.leaderboard import Board
from eqbench.metrics import METRICS
from eqbench.plots.drawing import WIDTH, Marks, Titles, colours_of, mark
from eqbench.results import Result, Status

CAPTION = (
    "Rise of the loss around the trained weights (untrained ones, where there are no others), every seed, before gauge balancing "
    "(hollow) and after (filled), and the kink ratio at three steps. Descriptors: none of them says that a model is better."
)
KINDS = {"sam": "SAM sharpness", "adaptive": "adaptive, ℓ2", "adaptive_max": "adaptive, ℓ∞", "average": "average case"}
SHAPES = "v^s"
STEPS = {"kink_ratio_small": "10⁻⁴", "kink_ratio_middle": "10⁻³", "kink_ratio": "10⁻²"}
Found = dict[tuple[str, str], list[tuple[str, Result]]]  # (data, model) -> (seed, result)


def draw(board: Board, titles: Titles) -> Figure | None:
    """The figure, or None for a board without its numbers; `titles` gets what its marks are."""
    found = finished(board, "sharpness")
    if not found:
        return None
    colours = {model: look[0] for model, look in colours_of(board).items()}
    figure = Figure(figsize=(WIDTH, 1.35 + 0.38 * len(found)), layout="constrained")
    grid = figure.subplots(1, len(KINDS) + 1, sharey=True)
    for axes, kind in zip(grid, KINDS, strict=False):
        _kind(axes, found, kind, colours, titles)
    _kinks(grid[-1], found, colours, titles)
    grid[0].set_yticks(range(len(found)), [f"{data} / {model}" for data, model in found])
    grid[0].set_ylim(len(found) - 0.5, -0.5)
    for axes in grid:
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(axis="x")
    handles = [mark("o", "#666666", "before balancing", hollow=True), mark("o", "#666666", "after"), *_step_marks()]
    figure.legend(handles=handles, loc="outside upper left", ncols=5, fontsize=8, handletextpad=0.4)
    return figure


def finished(board: Board, probe: str) -> Found:
    """The results of a probe at the trained weights of every model and seed, else at the untrained ones; sorted."""
    found: Found = {}
    for state in ("final", "init"):
        known = set(found)
        for cell in sorted(cell for cell in board.results if (cell.probe, cell.state) == (probe, state)):
            place, result = (board.plan.data(cell), cell.model), board.results[cell]
            if result.status is Status.ok and place not in known:
                found.setdefault(place, []).append((cell.seed, result))
    return dict(sorted(found.items()))


def _places(found: Found) -> Iterator[tuple[float, str, str, Result]]:
    """(height, model, what to say of it, result) of every seed."""
    for i, ((data, model), results) in enumerate(found.items()):
        for j, (seed, result) in enumerate(results):
            yield i + (j - (len(results) - 1) / 2) * 0.22, model, f"{model} on {data}, {seed}", result


def _kind(axes: Axes, found: Found, kind: str, colours: dict[str, str], titles: Titles) -> None:
    metric = METRICS[f"{kind}_sharpness"]
    marks = Marks(axes, kind)
    for y, model, said, result in _places(found):
        after, ratio = result.metrics[metric.name].value, result.metrics[f"{kind}_gauge_ratio"].value
        if after is None or after <= 0:  # no place on a logarithmic axis
            continue
        values = {"after": after} | ({"before": after * ratio} if ratio is not None and ratio > 0 else {})
        for name, value in values.items():
            said_of = f"{said}, {name} balancing: {metric.symbol} = {value:.3g} nat"
            marks.add(value, y, "o", 20, colours[model], said_of, hollow=name == "before")
        axes.hlines([y], min(values.values()), max(values.values()), colors=colours[model], linewidths=0.8, alpha=0.6)
    marks.draw(titles)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    places = LogLocator(subs=(1.0,) if high > 20 * low else (1.0, 3.0), numticks=5)
    axes.xaxis.set_major_locator(places if high > 4 * low else MaxNLocator(3))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title(KINDS[kind], fontsize=8)
    symbol = metric.symbol.translate(str.maketrans("", "", "_{}"))
    axes.set_xlabel(f"{symbol}, {metric.unit}", fontsize=8)


def _kinks(axes: Axes, found: Found, colours: dict[str, str], titles: Titles) -> None:
    axes.axvline(1, color="#bbbbbb", linewidth=2.5, zorder=1)
    marks = Marks(axes, "kinks")
    for name, shape in zip(STEPS, SHAPES, strict=True):
        for y, model, said, result in _places(found):
            value = result.metrics[name].value
            if value is not None:
                marks.add(value, y, shape, 20, colours[model], f"{said}: kink ratio at {STEPS[name]} = {value:.4g}")
    marks.draw(titles)
    axes.set_title("kink ratio", fontsize=8)
    axes.set_xlabel("bend / vᵀHv", fontsize=8)


def _step_marks() -> list[object]:
    return [mark(shape, "#666666", f"ε = {step}") for shape, step in zip(SHAPES, STEPS.values(), strict=True)]
