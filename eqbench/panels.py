"""The small figures of one network, each made of what one probe stored in its cells or training in its card (no torch)."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from eqbench.columns import number
from eqbench.config import Cell
from eqbench.minis import Band, Line, chart, picture
from eqbench.plots.certificate import GATES, NAMES
from eqbench.plots.density import smoothed
from eqbench.plots.families import alive, coloured, said
from eqbench.results import Result

Own = Sequence[tuple[Cell, Result]]  # the finished cells of one network on one data set, the trained ones first

SERIES = 8  # looks `s0` … `s7` of models.css
FAMILIES, TUNED = 6, 2  # of a group, at most
ORBITS = 3  # of a network, at most: those beside which random lines rise most
RISE = 5.0  # nats above the lowest, where a loss is cut
SPECTRUM = 81  # points of a density
WORDS = {"init": "untrained", "final": "trained"}


@dataclass(frozen=True)
class Panel:
    """One kind of figure of one network: what to write above its charts and below them."""

    kind: str
    heading: str
    charts: list[tuple[str, Markup]]  # (what a chart shows, the chart)
    note: str
    table: Markup | None = None

    @property
    def size(self) -> int:
        """About how many characters of the page it takes."""
        return (
            sum(len(words) + len(figure) + 60 for words, figure in self.charts) + len(self.note) + len(self.table or "")
        )


def learning(cards: dict[str, dict[str, Any]]) -> Panel | None:
    """Loss and accuracy over the epochs, a line a seed, from the cards of the weights that were measured."""
    found = {seed: rows for seed, card in cards.items() if (rows := list(_epochs(card.get("metrics"))))}
    if not found:
        return None
    losses, accuracies, last = [], [], []
    for k, (seed, rows) in enumerate(found.items()):
        at = [row["epoch"] for row in rows]
        for key, look, word in (("train_loss", "dashed", "training"), ("test_loss", "", "test")):
            curve = [row[key] for row in rows]
            losses.append(Line(at, curve, f"s{k % SERIES} {look}".rstrip(), f"{seed}, {word} loss: {_ends(curve)}"))
        curve = [row["test_accuracy"] for row in rows]
        accuracies.append(Line(at, curve, f"s{k % SERIES}", f"{seed}, test accuracy: {_ends(curve)}"))
        last.append(f"{seed}: {number(curve[-1])} after {at[-1]:.0f} epochs")
    span = (min(line.x[0] for line in losses), max(line.x[-1] for line in losses))
    ends = (f"epoch {span[0]:.0f}", f"{span[1]:.0f}")
    top = max(v for line in losses for v in line.y if v is not None)
    seeds = f"{len(found)} seed{'s' * (len(found) > 1)}"
    charts = [
        ("Loss, dashed while training", chart(f"Loss over epochs, {seeds}", losses, span, (0, top), ends, "nat")),
        ("Test accuracy", chart(f"Test accuracy over epochs, {seeds}", accuracies, span, (0, 1), ends)),
    ]
    return Panel("learning curves", "Learning curves", charts, f"Test accuracy {'; '.join(last)}.")


KEYS = ("epoch", "train_loss", "test_loss", "test_accuracy")


def _epochs(history: Any) -> Iterator[dict[str, float]]:
    """The epochs of a card that are whole: cards come from files, and a file may say anything."""
    for row in history if isinstance(history, list) else []:
        values = {key: row.get(key) for key in KEYS} if isinstance(row, dict) else {}
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
        if len(numbers) == len(KEYS):
            yield numbers


def _ends(curve: Sequence[float | None]) -> str:
    known = [value for value in curve if value is not None]
    return f"{number(known[0])} to {number(known[-1])}" if known else "no finite number"


def spectrum(own: Own) -> Panel | None:
    """Density of the Hessian's eigenvalues and the largest ones as ticks, trained beside untrained, of the first seed."""
    states: dict[str, Result] = {}
    for cell, result in own:
        if result.curves.get("eigenvalues") or result.curves.get("density_nodes"):
            states.setdefault(cell.state, result)
    if not states:
        return None
    values = {state: _numbers(result, "eigenvalues", "smallest", "density_nodes") for state, result in states.items()}
    largest = max((abs(value) for own_values in values.values() for value in own_values), default=0.0) or 1.0
    linear = largest * 1e-4  # as in the figure `density`, of which this is one row
    ends = math.asinh(largest / linear) + 0.5
    grid = np.linspace(-ends, ends, SPECTRUM)
    marks: list[Line | Band] = []
    said_of = []
    curves = {state: _density(grid, linear, result) for state, result in states.items()}
    peak = max((float(curve.max()) for curve in curves.values() if curve is not None), default=1.0)
    floor = min([0.1 * weight for weight in _numbers_of(states, "density_weights") if weight > 0], default=peak * 1e-6)
    floor = max(min(floor, 0.1 * peak), 1e-9 * peak)
    for state in ("init", "final"):
        if state not in states:
            continue
        look, word = ("untrained", "trained")[state == "final"], WORDS[state]
        curve = curves[state]
        if curve is not None:
            height = np.log(np.maximum(curve / floor, 1)) / math.log(peak / floor)
            marks.append(Line([*grid], [*height], look, f"density, {word}"))
            if state == "final":
                marks.append(Band([*grid], [0.0] * len(grid), [*height], "fill"))
        top = sorted(_numbers(states[state], "eigenvalues", "smallest"))
        for value in top:
            place = math.asinh(value / linear)
            marks.append(Line([place, place], [0.0, 0.12], look, f"{word}: λ = {number(value)}"))
        if top:
            said_of.append(f"{word} {number(top[0])} to {number(top[-1])}")
    title = f"Density of the Hessian's eigenvalues, symmetric log scale; {', '.join(said_of)}"
    marks.append(Line([0.0, 0.0], [0.0, 1.0], "frame", "λ = 0"))
    names = (number(-largest), number(largest))
    figure = chart(title, marks, (-ends, ends), (0, 1), names, top="log density")
    return Panel("spectrum", "Spectrum of the Hessian", [("Density (log) over λ (symmetric log)", figure)],
                 f"Eigenvalues found: {'; '.join(said_of)}." if said_of else "")  # fmt: skip


def _numbers_of(states: dict[str, Result], key: str) -> list[float]:
    return [value for result in states.values() for value in _numbers(result, key)]


def _numbers(result: Result, *keys: str) -> list[float]:
    return [float(value) for key in keys for value in result.curves.get(key, []) if value is not None]


def _density(grid: Any, linear: float, result: Result) -> Any:
    nodes, weights = (result.curves.get(f"density_{part}", []) for part in ("nodes", "weights"))
    if not nodes or len(nodes) != len(weights) or None in nodes or None in weights:
        return None
    return smoothed(grid, np.arcsinh(np.array(nodes, float) / linear), np.array(weights, float))


def certificate(own: Own) -> Panel | None:
    """Families of symmetries, what was found of each and how exactly it holds: the worst over seeds and states."""
    cells = [(cell, result) for cell, result in own if cell.probe == "symmetries" and result.curves.get("families")]
    rows: dict[str, list[dict[str, Any]]] = {}
    for _, result in cells:
        for row in result.curves["families"]:
            rows.setdefault(row["family"], []).append(row)
    if not rows:
        return None
    gates = [GATES["float64"], GATES["float32"]]
    lines = []
    for family in sorted(rows, key=lambda name: (name == "C0", list(NAMES).index(name) if name in NAMES else 99)):
        own_rows = rows[family]
        residuals = [max((row[k] for row in own_rows if row.get(k) is not None), default=None)
                     for k in ("r2", "r2_single")]  # fmt: skip
        counts = [max(int(row.get(key) or 0) for row in own_rows) for key in ("confirmed", "refuted", "null")]
        cells_of = Markup("").join(Markup("<td>{}").format(count or "—") for count in counts)
        for value, gate in zip(residuals, gates, strict=True):
            verdict = ""
            if value is not None and family != "C0":
                verdict = "" if value <= gate else " above the gate"
            cells_of += Markup("<td{}>{}{}").format(
                Markup(' class="failed"') if verdict else "", number(value), verdict)  # fmt: skip
        lines.append(Markup('<tr><th scope="row">{} {}{}\n').format(family, NAMES.get(family, ""), cells_of))
    head = Markup("").join(
        Markup('<th scope="col">{}').format(word)
        for word in ("Family", "found", "refuted", "null directions", "residual, float64", "float32")
    )
    table = Markup('<table class="plain"><thead><tr>{}</thead><tbody>\n{}</tbody></table>').format(
        head, Markup("").join(lines)
    )
    measured = ", ".join(f"{cell.seed} {WORDS.get(cell.state, cell.state)}" for cell, _ in cells)
    control = max((row["r2"] for row in rows.get("C0", []) if row.get("r2") is not None), default=None)
    note = f"Largest of {measured}. Gates: {gates[0]:.0e} in float64, {gates[1]:.0e} in float32".replace("-", "−")
    note += f"; the control, no symmetry, must miss them and has {number(control)}." if control is not None else "."
    return Panel("certificate", "Certificate of symmetries", [], note, table)


def filters(own: Own) -> Panel | None:
    """Pictures of the first layer's families of filters, a row a group, of the first seed that has them."""
    charts = []
    for cell, result in _circuits(own, "filters"):
        families = [one for one in result.curves["filters"] if alive(one["kernels"])]
        for one in sorted(families, key=lambda one: not one["matched"])[:FAMILIES]:
            kernels = coloured(np.array(one["kernels"], float))
            opaque = np.concatenate([kernels, np.ones((*kernels.shape[:3], 1))], 3)
            spaced = np.pad(opaque, ((0, 0), (0, 0), (0, 1), (0, 0)))  # a transparent column after each
            wide = np.concatenate([*spaced], 1)[:, :-1]
            look = "kernels" if one["matched"] else "kernels unmatched"
            charts.append(
                (f"{cell.group}, {one['correlation']:.2f}", picture(f"{cell.group}: {said(one)}", wide, look))
            )
    note = "Below each: the group and the least correlation of its members; dashed: not above the null."
    return Panel("filters", "Families of filters", charts, note) if charts else None


def tuning(own: Own) -> Panel | None:
    """Joint tuning curves of the families with most members, of every group."""
    charts = []
    for cell, result in _circuits(own, "tuning"):
        families = [one for one in result.curves["tuning"] if alive(one["responses"])]
        for one in sorted(families, key=lambda one: (not one["matched"], -len(one["members"])))[:TUNED]:
            angles = (np.array(one["angles"], float) + 180) % 360 - 180
            order = angles.argsort()
            dash = "" if one["matched"] else " dashed"
            lines = [
                Line([*angles[order]], [response[i] for i in order], f"s{k % SERIES}{dash}", f"sibling {k}")
                for k, response in enumerate(one["responses"])
            ]
            known = [v for response in one["responses"] for v in response if v is not None]
            figure = chart(f"{cell.group}: {said(one)}", lines, (-180, 180), (min(0.0, *known), max(known)),
                           ("−180°", "180°"))  # fmt: skip
            charts.append((f"{cell.group}, {one['layer']}, {len(one['members'])} units", figure))
    note = "Responses over the angle from the unit's best, a line a member; dashed: not above the null."
    return Panel("tuning curves", "Tuning curves", charts, note) if charts else None


def _circuits(own: Own, curve: str) -> Iterator[tuple[Cell, Result]]:
    """The first trained cell of each group that has this curve."""
    seen = set()
    for cell, result in own:
        if cell.probe == "circuits" and cell.state == "final" and result.curves.get(curve) and cell.group not in seen:
            seen.add(cell.group)
            yield cell, result


def slices(own: Own) -> Panel | None:
    """The loss along lines through the first seed's weights, and on the way to others."""
    found = next(((cell, result) for cell, result in own if cell.probe == "slices" and result.curves), None)
    if found is None:
        return None
    cell, result = found
    charts = []
    for words, lines in _slices(result.curves):
        known = [v for line in lines for v in line.y if v is not None]
        if known:
            low = min(0.0, *known)
            figure = chart(f"Loss, {words}: {number(min(known))} to {number(max(known))} nat", lines,
                           (lines[0].x[0], lines[0].x[-1]), (low, max(min(max(known), min(known) + RISE), low + 1e-6)),
                           unit="nat")  # fmt: skip
            charts.append((words, figure))
    note = f"Of {cell.seed} {WORDS.get(cell.state, cell.state)}; losses are cut {RISE:g} nats above the lowest."
    return Panel("slices", "Slices of the loss", charts, note) if charts else None


def _slices(curves: dict[str, list[Any]]) -> Iterator[tuple[str, list[Line]]]:
    yield (
        "along random lines",
        [Line(one["times"], one["losses"], f"s{k % SERIES}", f"random line {k + 1}: {_ends(one['losses'])}")
         for k, one in enumerate(curves.get("lines", []))],
    )  # fmt: skip
    rising = sorted(
        curves.get("orbits", []), key=lambda one: -max((v for v in one["random"] if v is not None), default=0.0)
    )[:ORBITS]
    orbits = []
    for k, one in enumerate(rising):
        orbits.append(Line(one["times"], one["random"], f"s{k} dotted", f"random line as far as {one['family']}"))
        orbits.append(Line(one["times"], one["losses"], f"s{k}", f"orbit {one['family']}"))
    yield "along symmetry orbits (dotted: random lines as long)", orbits
    eigen = []
    for k, one in enumerate(curves.get("eigenvectors", [])):
        eigen.append(Line(one["times"], one["losses"], f"s{k % SERIES}", f"eigenvector {k + 1}"))
        middle = one["losses"][len(one["losses"]) // 2]
        if middle is not None:
            parabola = [middle + one["curvature"] * t**2 / 2 for t in one["times"]]
            eigen.append(
                Line(one["times"], parabola, f"s{k % SERIES} dotted", f"its parabola, λ = {one['curvature']:.3g}")
            )
    yield "along top eigenvectors (dotted: their parabolas)", eigen
    looks = {"as it is": "untrained", "matched": "s1", "random": "untrained dotted"}
    for words, to_init in (("to another seed (colour: channels matched)", False), ("to the initial weights", True)):
        paths = [one for one in curves.get("paths", []) if (one["to"] == "init") == to_init]
        yield (
            words,
            [Line([k / (len(one["losses"]) - 1) for k in range(len(one["losses"]))], one["losses"],
                  looks.get(one["order"], "untrained"), f"to {one['to']}, channels {one['order']}") for one in paths],
        )  # fmt: skip


PANELS: tuple[Callable[[Own], Panel | None], ...] = (spectrum, certificate, filters, tuning, slices)
