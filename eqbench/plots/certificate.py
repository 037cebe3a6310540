"""The certificate of every model: residuals of each family of symmetries against the gates, with the control (no torch)."""

from typing import Any

from matplotlib.figure import Figure

from eqbench.leaderboard import Board
from eqbench.metrics.symmetries import CONTROL, FAMILIES
from eqbench.plots.drawing import WIDTH, Marks, Titles, colours_of, legend, mark
from eqbench.results import Status

CAPTION = (
    "Certificate of symmetries, a row a family: how far the Hessian is from what each symmetry forces on it, in float64 (circles; hollow: "
    "untrained) and float32 (diamonds; S9, S11 and S12 but for the norms' eps), against the gates (dashed). Crosses were refuted: "
    "transformations that change the logits, at the relative change, and the control (C0), at its residual."
)
NAMES = FAMILIES | {CONTROL: "control"}
GATES = {"float64": 1e-10, "float32": 1e-5}
LEAST, MOST = 1e-18, 10.0  # what is shown; smaller residuals are at the edge


def draw(board: Board, titles: Titles) -> Figure | None:
    """The figure, or None for a board without its numbers; `titles` gets what its marks are."""
    found: list[tuple[str, str, str, dict[str, Any]]] = []
    for cell, result in board.results.items():
        if result.status is Status.ok and cell.probe == "symmetries" and cell.state in ("init", "final"):
            found += [(cell.model, cell.seed, cell.state, row) for row in result.curves.get("families", [])]
    if not found:
        return None
    shown = [family for family in NAMES if any(row["family"] == family for *_, row in found)]
    colours = colours_of(board)
    models = list(dict.fromkeys(model for model, *_ in found))
    figure = Figure(figsize=(WIDTH, 1.5 + 0.42 * len(shown)), layout="constrained")
    axes = figure.subplots()
    marks = Marks(axes, "certificate")
    for model in models:
        for state, word in (("init", "untrained"), ("final", "trained")):
            own = [(seed, row) for name, seed, when, row in found if name == model and when == state]
            for kind, shape, hollow in (
                ("r2", "o", state == "init"),
                ("r2_single", "D", state == "init"),
                ("change", "x", False),
            ):
                for seed, row in own:
                    place = _place(kind, row)
                    if place is None:
                        continue
                    y = shown.index(row["family"]) + _offset(models.index(model), len(models))
                    marks.add(min(max(place, LEAST), MOST), y, shape, 20 if shape == "o" else 14, colours[model][0],
                              f"{model}, {seed}, {word}: {_words(kind, row)}", hollow=hollow)  # fmt: skip
    marks.draw(titles, linewidth=0.9)
    for name, gate in GATES.items():
        axes.axvline(gate, color="#888888", linewidth=1, linestyle="--", zorder=1)
        axes.annotate(f"gate {name}", (gate, 1), xycoords=("data", "axes fraction"), fontsize=7, color="#555555",
                      xytext=(2, -2), textcoords="offset points", va="top")  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("-", "−"))
    axes.set_xlim(LEAST / 2, MOST * 2)
    axes.set_yticks(range(len(shown)), [f"{family}  {NAMES[family]}" for family in shown])
    axes.set_ylim(len(shown) - 0.5, -0.7)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.set_xlabel("residual |HK + J'g| / (|HK| + |J'g|), log scale; crosses: relative change of the logits")
    kinds = [mark("o", "#666666", "float64, trained"), mark("o", "#666666", "float64, untrained", hollow=True),
             mark("D", "#666666", "float32"), mark("x", "#666666", "refuted")]  # fmt: skip
    legend(figure, colours, models, kinds)
    return figure


def _place(kind: str, row: dict[str, Any]) -> float | None:
    """Where a row's mark of this kind is, or None; the control's residual is a cross."""
    if row["family"] == CONTROL:
        return row.get("r2") if kind == "change" else None
    return row.get(kind)


def _offset(i: int, n: int) -> float:
    """Vertical places of n models within a row."""
    return 0.0 if n == 1 else 0.6 * (i / (n - 1) - 0.5)


def _words(kind: str, row: dict[str, Any]) -> str:
    family = f"{row['family']} {NAMES[row['family']]}"
    if row["family"] == CONTROL:
        return f"control, {row['refuted']} places: residual {row['r2']:.2g}"
    if kind == "change":
        return f"{family}: {row['refuted']} refuted, logits change by {row['change']:.2g} at {row['refuted_at']}"
    precision = "float64" if kind == "r2" else "float32"
    null = f", {row['null']} null directions" if row["null"] else ""
    return f"{family}: {row['confirmed']} found, residual {row[kind]:.2g} in {precision}{null}"
