"""The loss along lines through a network's weights, and on the way to others (no torch)."""

from collections.abc import Iterator
from typing import Any

from eqbench.columns import number
from eqbench.minis import Line, chart
from eqbench.panels.base import SERIES, WORDS, Own, Panel, ends

ORBITS = 3  # at most: those beside which random lines rise most
RISE = 5.0  # nats above the lowest, where a loss is cut


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
        [Line(one["times"], one["losses"], f"s{k % SERIES}", f"random line {k + 1}: {ends(one['losses'])}")
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
