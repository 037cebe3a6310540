"""How symmetric each network's gradient and Hessian are under a group, beside random orders of its channels (no torch)."""

from matplotlib.figure import Figure

from eqbench.leaderboard import Board
from eqbench.metrics import METRICS
from eqbench.plots.drawing import WIDTH, Titles, colours_of, mark
from eqbench.results import Measure, Status

PANELS = ("gradient_residual", "commutator")
CAPTION = (
    "Asymmetry of the loss gradient, and of the Hessian, under a group that acts on weights (its channels matched), "
    "untrained above trained, every seed. Ticks: random orders of the channels."
)


def draw(board: Board, titles: Titles) -> Figure | None:
    """The figure, or None for a board without its numbers; `titles` gets what its marks are."""
    found: dict[tuple[str, str, str], list[tuple[str, str, dict[str, Measure]]]] = {}
    for cell, result in board.results.items():
        known = {name: result.metrics[name] for name in PANELS if name in result.metrics}
        known = {name: measure for name, measure in known.items() if measure.value is not None}
        if result.status is Status.ok and cell.state in ("init", "final") and known:
            found.setdefault((board.plan.data(cell), cell.model, cell.group), []).append((cell.state, cell.seed, known))
    if not found:
        return None
    colours, rows = colours_of(board), sorted(found)
    figure = Figure(figsize=(WIDTH, 1.1 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for panel, name in zip(axes, PANELS, strict=True):
        for i, row in enumerate(rows):
            colour, label = colours[row[1]][0], " / ".join(row)
            for state, offset, word in (("init", -0.17, "untrained"), ("final", 0.17, "trained")):
                own = [(seed, known[name]) for at, seed, known in found[row] if at == state and name in known]
                if not own:
                    continue
                y, gid = [i + offset] * len(own), f"{name}-{i}-{state}"
                chance = [measure.null for _, measure in own if measure.null is not None]
                panel.scatter(chance, y[: len(chance)], 40, marker="|", color="#888888", gid=f"{gid}-random")
                panel.scatter([measure.value for _, measure in own], y, 22, edgecolor=colour, gid=gid, zorder=3,
                              facecolor="white" if state == "init" else colour)  # fmt: skip
                titles[gid] = [f"{label}, {seed}, {word}: {m.value:.3g} [{_shown(m.lo)}, {_shown(m.hi)}], random {_shown(m.null)}" for seed, m in own]  # fmt: skip
                titles[f"{gid}-random"] = [f"{label}, {word}, random order: {value:.3g}" for value in chance]
        panel.set_xlabel(f"{METRICS[name].title} {METRICS[name].symbol}")
        panel.set_xlim(left=0)
        panel.grid(axis="x")
    axes[0].set_yticks(range(len(rows)), [" / ".join(row) for row in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    axes[0].tick_params(axis="y", length=0)
    kinds = [mark("o", "#666666", "untrained", hollow=True), mark("o", "#666666", "trained")]
    figure.legend(handles=[*kinds, mark("|", "#888888", "random order of channels")], loc="outside upper left", ncols=3,
                  fontsize=8, handletextpad=0.4)  # fmt: skip
    return figure


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
