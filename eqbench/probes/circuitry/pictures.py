"""What can be shown of circuits: filters of a family side by side, joint tuning curves, and hue tied to rotation.

`filters`: the strongest families of the first layer, a dict each:
    layer: its name. members: channels, member k being g^k of member 0. correlation: the least of its held-out matches.
    matched: whether that exceeds the null. kernels: (members, 3, k, k), the members' weights as the image meets them,
    batch norm folded in; kernels of more than 8 px are area-averaged to 8 x 8.

`tuning`: the strongest families of the first layers, a dict each:
    layer, members, correlation, matched: as above. angles: 24, degrees, counter-clockwise.
    responses: (members, 24). Row k: the k-th sibling of a unit, 0 the unit itself, at angles from where the unit responds
    most; the mean over the unit's best images and over the family's units in turn. A response is the largest over all
    positions, in standard deviations of that channel.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor, nn

from eqbench.groups import FiniteGroup, get
from eqbench.groups.lattice import HALF_TURN
from eqbench.probes.circuitry.graph import Port, Weight
from eqbench.probes.circuitry.units import Units, listening, order
from eqbench.probes.ladders.matching import Moments

FAMILIES, MEMBERS, PIXELS = 6, 8, 8  # shown at most: families a picture, members a family, pixels a kernel's side
LAYERS = 3  # the first layers, whose families have tuning curves
ANGLES = 24
GREY = 1e-3  # the least change of a pixel by the hue that counts as colour


def families(group: FiniteGroup, g: Any, one: Weight, units: Units) -> list[dict[str, Any]]:
    """The strongest cycles of g: what `filters` and `tuning` say of each family."""
    held, longest, threshold = units.held[one.target], order(group, g), units.thresholds[one.target]
    found = [(float(held[cycle].min()), cycle) for cycle in cycles(units.pi[one.writes]) if 2 <= len(cycle) <= longest]
    return [
        {"layer": one.name, "members": cycle[:MEMBERS], "correlation": round(least, 4), "matched": least > threshold}
        for least, cycle in sorted(found, key=lambda item: (-item[0], item[1]))[:FAMILIES]
    ]


def cycles(pi: Tensor) -> Iterator[list[int]]:
    """The cycles of a permutation (C,), each from its least element on.

    >>> list(cycles(torch.tensor([2, 1, 0])))
    [[0, 2], [1]]
    """
    image, seen = pi.tolist(), set[int]()
    for start in range(len(image)):
        if start not in seen:
            cycle = [start]
            while image[cycle[-1]] != start:
                cycle.append(image[cycle[-1]])
            seen.update(cycle)
            yield cycle


def filters(families: Sequence[dict[str, Any]], weight: Tensor) -> list[dict[str, Any]]:
    """`filters` of families of the first layer, whose weight is (out, 3, k, k)."""
    size = min(PIXELS, weight.shape[-1])
    small = nn.functional.adaptive_avg_pool2d(weight.double().cpu(), size)
    return [family | {"kernels": _rounded(small[family["members"]])} for family in families]


def tuning(families: Sequence[dict[str, Any]], responses: Tensor, mirrored: bool) -> list[dict[str, Any]]:
    """`tuning` of families of one layer.

    Args:
        responses: (images, angles, C). mirrored: whether g turns angles round: every second sibling of a unit then
            turns the other way.
    """
    found = []
    z = responses.double()
    z = (z - z.mean((0, 1))) / z.std((0, 1), correction=0).clamp(min=1e-12)
    for family in families:
        members = family["members"]
        curves = torch.zeros(len(members), z.shape[1], dtype=torch.float64)
        for k, anchor in enumerate(members):
            own = z[:, :, anchor]
            best = own.amax(1).argsort(descending=True, stable=True)[: max(1, len(own) // 2)]
            for image in best.tolist():
                peak = int(own[image].argmax())
                turned = z[image].roll(-peak, 0)[:, members[k:] + members[:k]]
                turned = turned.flip(0).roll(1, 0) if mirrored and k % 2 else turned
                curves += turned.T / (len(best) * len(members))
        angles = [round(360 * i / ANGLES, 2) for i in range(ANGLES)]
        found.append(family | {"angles": angles, "responses": _rounded(curves)})
    return found


@torch.no_grad()
def turned_responses(network: nn.Module, ports: Sequence[Port], x: Tensor) -> dict[str, Tensor]:
    """The largest response of each channel over all positions, to images x (B, 3, n, n) turned by each of ANGLES.

    Returns:
        Name of the port's module -> (B, angles, C). Costs ANGLES forwards an image.
    """
    found: dict[str, list[Tensor]] = {port.module: [] for port in ports}
    rotation = get("rotation")
    with listening(network, ports, lambda port, z: found[port.module].append(z.amax((2, 3)))):
        for i in range(ANGLES):
            network(rotation.act(x, ("rotation", 2 * math.pi * i / ANGLES)))
    return {name: torch.stack(rows, 1).cpu() for name, rows in found.items()}


class _Read(Exception):
    """The first layer has been read: the rest of the forward pass is not needed."""


@torch.no_grad()
def twist(network: nn.Module, one: Weight, batches: Iterable[Tensor]) -> Tensor | None:
    """corr(f_i(x), g^-1 f_i(gx)) for g = hue and half turn together, less the larger of either alone: (C,).

    Units of colour contrast: half a hue circle and half a turn each exchange its two colours, both leave it (Olah et al.
    2020, Distill). The units are those of the first layer; 4 passes as far as that, an image.

    Returns:
        In [-2, 2]; None for images without colour, which no hue changes.
    """
    hue, turn = get("hue"), cast(FiniteGroup, get("c4"))
    moments = [Moments() for _ in range(3)]

    def hear(port: Port, z: Tensor) -> None:
        still, coloured, turned, both = z.chunk(4)
        pairs = (turn.act_features(both, HALF_TURN), turn.act_features(turned, HALF_TURN), coloured)
        for moment, moved in zip(moments, pairs, strict=True):
            moment.update(still, moved)
        raise _Read

    change = 0.0
    with listening(network, [one.raw], hear):
        for x in batches:
            x = x.to(next(network.parameters()).device)
            coloured = hue.act(x, ("hue", math.pi))
            change = max(change, float((coloured - x).abs().max()))
            with suppress(_Read):
                network(torch.cat([x, coloured, turn.act(x, HALF_TURN), turn.act(coloured, HALF_TURN)]))
    if change < GREY:
        return None
    both, turned, coloured = (moment.correlation().diagonal().cpu() for moment in moments)
    return both - torch.maximum(turned, coloured)


def _rounded(x: Tensor) -> Any:
    return [_rounded(row) if row.ndim else round(float(row), 4) for row in x]
