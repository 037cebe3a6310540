"""What was recorded while each network trained: sharpness beside the edge, the gradient in it, identities, balance (no torch)."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from eqbench.leaderboard import Board
from eqbench.metrics import METRICS
from eqbench.metrics.symmetries import BUT_FOR_EPS, CONTROL
from eqbench.plots.drawing import WIDTH, Titles, colours_of, legend
from eqbench.results import Status

MODELS = 8  # at most: the first by name
CAPTION = (
    f"Dynamics of training over updates, a line a seed, of at most {MODELS} models, the first by name. Largest Hessian eigenvalue on a fixed batch, and dotted the edge of "
    "stability of gradient descent, which AdamW does not have; share of the gradient along that eigenvector; identities of the "
    "actual gradient, the worst family, and dotted the control, which is no symmetry; imbalance of what is written and read, "
    f"mean over families; both without the families that the norms' eps breaks ({', '.join(BUT_FOR_EPS)})."
)


def draw(board: Board, titles: Titles) -> Figure | None:
    """The figure, or None for a board without such records; `titles` gets what its marks are."""
    found = [
        (cell.model, f"{cell.model} on {board.plan.data(cell)}, {cell.seed}", result.curves)
        for cell, result in board.results.items()
        if cell.probe == "dynamics" and result.status is Status.ok and result.curves.get("steps")
    ]
    models = sorted({model for model, _, _ in found})[:MODELS]
    found = [one for one in found if one[0] in models]
    if not models:
        return None
    figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
    axes = figure.subplots(2, 2)
    sharp, aligned, obeyed, balance = axes.flat
    colours = colours_of(board)
    for i, (model, name, curves) in enumerate(found):
        steps, families = curves["steps"], curves["families"]
        x = [entry["update"] for entry in steps]
        colour = colours[model][0]
        clean = [one for one in families if one["family"] not in (*BUT_FOR_EPS, CONTROL)]
        _line(sharp, titles, f"sharpness-{i}", x, [e["lambda_max"] for e in steps], colour, f"{name}: λ")
        _line(sharp, titles, f"edge-{i}", x, [e["threshold"] for e in steps], colour, f"{name}: edge of stability", ":")
        _line(aligned, titles, f"aligned-{i}", x, [e["alignment"] for e in steps], colour, f"{name}: share")
        worst = _over([one["identity"] for one in clean], max)
        _line(obeyed, titles, f"identity-{i}", x, worst, colour, f"{name}: worst family")
        control: Sequence[float] = next((one["identity"] for one in families if one["family"] == CONTROL), [])
        _line(obeyed, titles, f"control-{i}", x, control, colour, f"{name}: control", ":")
        unequal = _over([one["imbalance"] for one in clean if "imbalance" in one], lambda v: sum(v) / len(v))
        _line(balance, titles, f"balance-{i}", x, unequal, colour, f"{name}: imbalance")
    tops = [e["lambda_max"] for _, _, c in found for e in c["steps"] if (e["lambda_max"] or 0) > 0]
    for one, label in (
        (sharp, f"{METRICS['lambda_max'].symbol} on a fixed batch"),
        (aligned, f"{METRICS['top_alignment'].title} {METRICS['top_alignment'].symbol}"),
        (obeyed, f"{METRICS['step_identity'].title} {METRICS['step_identity'].symbol}"),
        (balance, "Imbalance of what is written and read"),
    ):
        one.set_title(label)
        one.grid(axis="y")
    for one in (sharp, obeyed):
        one.set_yscale("log", nonpositive="mask")
        one.yaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
    if tops:  # the edge leaves the panel upwards as the rate decays
        sharp.set_ylim(min(tops) / 2, max(tops) * 4)
    for one in axes[1]:
        one.set_xlabel("update")
    aligned.set_ylim(0, 1)
    balance.set_ylim(0, 1)
    more = [Line2D([], [], color="#666666", linestyle=":", label="edge of stability; control")]
    legend(figure, colours, models, more, line=True)
    return figure


def _line(
    axes: Axes, titles: Titles, gid: str, x: Sequence[float], y: Sequence[float | None], colour: str, title: str,
    style: str = "-",
) -> None:  # fmt: skip
    known = [(a, b) for a, b in zip(x, y, strict=False) if b is not None]
    if known:
        at, values = zip(*known, strict=True)
        axes.plot(at, values, style, color=colour, linewidth=1.2, gid=gid)
        titles[gid] = [f"{title} {values[0]:.3g} to {values[-1]:.3g}"]


def _over(curves: Sequence[Sequence[float | None]], summary: Any) -> list[float | None]:
    """The summary at each step of those curves that have a number there."""
    columns = ([v for v in values if v is not None] for values in zip(*curves, strict=True))
    return [summary(values) if values else None for values in columns]
