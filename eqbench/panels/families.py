"""Families of units that a group exchanges: their filters as pictures, and their joint tuning curves (no torch)."""

from collections.abc import Iterator

import numpy as np

from eqbench.config import Cell
from eqbench.minis import Line, chart, picture
from eqbench.panels.base import SERIES, Own, Panel
from eqbench.plots.families import alive, coloured, said
from eqbench.results import Result

FAMILIES, TUNED = 6, 2  # of a group, at most


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
