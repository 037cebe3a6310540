"""Families of units: channels matched between f(x) and g^-1 f(gx) on one half of the images, checked on the other."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from eqbench.errors import Failed
from eqbench.groups import FiniteGroup
from eqbench.models import Network
from eqbench.probes.circuitry.graph import Graph, Heads, Port, Space, given
from eqbench.probes.circuitry.halves import Halves
from eqbench.probes.ladders.matching import Moments, match

QUANTILE = 0.95  # of the null's correlations: what a matched unit must exceed


@dataclass
class Units:
    """The units of a network matched under one element g: unit pi[i] of f(gx) is unit i of f(x), moved by g.

    Attributes:
        pi: (C,) of each space. heads: the same of attention heads.
        held: corr(f_i(x), g^-1 f_pi[i](gx)), (C,) of each port, on images that pi was not found on; 0 if constant.
        alive: channels i whose f_i(x) is not the same everywhere, as behind a ReLU that is never on, and those whose
            f_pi[i](gx) is not: (2, C) of each port.
        thresholds: of each port, what `held` must exceed: the quantile of a random network's.
    """

    pi: dict[Space, Tensor]
    heads: dict[Heads, Tensor]
    held: dict[Port, Tensor]
    alive: dict[Port, Tensor]
    thresholds: dict[Port, float]

    def matched(self, port: Port) -> Tensor:
        """Which units have a match that exceeds the threshold: (C,)."""
        return self.held[port] > self.thresholds[port]


@torch.no_grad()
def match_units(
    network: nn.Module,
    graph: Graph,
    halves: Halves,
    group: FiniteGroup,
    g: Any,
    thresholds: dict[Port, float] | None = None,
) -> Units:
    """Match the channels of every space under g (Bökman & Kahl 2023, NeurIPS): 2 forwards an image.

    All tensors of a space have their say: pi maximises the sum of their correlations. Heads are matched by the square
    sum of the correlations between their channels, since a head may rotate its channels freely.

    Args:
        halves: two disjoint sets of images: pi is found on the first, `held` on the second.
        thresholds: of a random network; None: this is it.
    """
    free = [space for space in graph.spaces if not space.image]
    ports = [port for space in free for port in space.ports] + [one.proj.source for one in graph.heads]
    correlation = _correlations(network, ports, halves[0], group, g)
    pi = {space: torch.arange(space.channels) for space in graph.spaces if space.image}
    for joint in {space.joint for space in free}:
        jointly = [space for space in free if space.joint == joint]
        sums = [torch.stack([correlation[port] for port in space.ports]).sum(0) for space in jointly]
        pi |= zip(jointly, match_blocks(sums, jointly[0].blocks), strict=True)
    heads = {}
    for one in graph.heads:
        blocks = correlation[one.proj.source].square().unflatten(1, (one.heads, -1)).unflatten(0, (one.heads, -1))
        heads[one] = match(blocks.sum((1, 3)))
    ends = {one.target: one.writes for one in graph.weights} | {one.proj.target: one.proj.writes for one in graph.heads}
    ends |= {one.source: one.reads for one in graph.weights if not one.reads.image}
    ends |= {one.qkv.source: one.qkv.reads for one in graph.heads}
    held, alive = {}, {}
    for port, matrix in _correlations(network, list(ends), halves[1], group, g).items():
        partner, matrix = pi[ends[port]], matrix.cpu()
        held[port] = matrix[torch.arange(len(matrix)), partner]
        alive[port] = torch.stack([(matrix != 0).any(1), (matrix != 0).any(0)[partner]])
    if thresholds is None:
        thresholds = {port: float(values.quantile(QUANTILE)) for port, values in held.items()}
    return Units(pi, heads, held, alive, thresholds)


def _correlations(
    network: nn.Module, ports: Sequence[Port], batches: Iterable[Tensor], group: FiniteGroup, g: Any
) -> dict[Port, Tensor]:
    """Corr(f_i(x), g^-1 f_j(gx)) over images and positions, (C, C) of each port.

    Raises:
        Failed: an activation is not finite.
    """
    moments = {port: Moments() for port in ports}
    back, device = group.inverse(g), next(network.parameters()).device
    for x in batches:
        x = x.to(device)

        def hear(port: Port, z: Tensor, pixels: int = x.shape[-1]) -> None:
            moments[port].update(*pair(z, port, group, back, pixels))

        with listening(network, ports, hear):
            network(torch.cat([x, group.act(x, g)]))
    found = {port: one.correlation() for port, one in moments.items()}
    for port, matrix in found.items():
        if not matrix.isfinite().all():
            raise Failed(f"layer {port.module}: activations that are not finite")
    return found


def pair(z: Tensor, port: Port, group: FiniteGroup, back: Any, pixels: int) -> tuple[Tensor, Tensor]:
    """(f(x), g^-1 f(gx)) of the maps of a batch that holds all x, then all gx."""
    still, moved = z.chunk(2)
    return still, moved if port.layout.grid == (1, 1) else group.act_features(moved, back, pixels)


@contextmanager
def listening(network: nn.Module, ports: Sequence[Port], hear: Callable[[Port, Tensor], None]) -> Iterator[None]:
    """Inside, every forward pass calls hear(port, its map (B, C, h, w)) for each port."""
    inner = network.module if isinstance(network, Network) else network

    def after(port: Port) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, args, y: hear(port, port.layout.map(y))

    def before(port: Port) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, args, named: hear(port, port.layout.map(given(args, named)))

    with ExitStack() as stack:
        for port in dict.fromkeys(ports):
            module = inner.get_submodule(port.module)
            if port.output:
                stack.callback(module.register_forward_hook(after(port)).remove)
            else:
                stack.callback(module.register_forward_pre_hook(before(port), with_kwargs=True).remove)
        yield


def match_blocks(correlations: Sequence[Tensor], blocks: int) -> list[Tensor]:
    """`match` for several sets of channels whose runs, `blocks` in each, stay whole and are permuted alike.

    >>> pi = torch.tensor([3, 2, 0, 1])  # the two runs change places
    >>> match_blocks([torch.eye(4)[pi], torch.ones(2, 2)], 2)[0].tolist()
    [3, 2, 0, 1]
    """
    if blocks == 1:
        return [match(matrix) for matrix in correlations]
    inside: list[dict[tuple[int, int], Tensor]] = []
    total = torch.zeros(blocks, blocks, dtype=torch.float64)
    for matrix in correlations:
        parts = matrix.cpu().unflatten(1, (blocks, -1)).unflatten(0, (blocks, -1)).transpose(1, 2)
        found = {(a, b): match(parts[a, b]) for a in range(blocks) for b in range(blocks)}
        inside.append(found)
        for (a, b), pi in found.items():
            total[a, b] += parts[a, b][torch.arange(len(pi)), pi].sum()
    outer = match(total).tolist()
    return [torch.cat([b * len(found[a, b]) + found[a, b] for a, b in enumerate(outer)]) for found in inside]


@dataclass
class Census:
    """The families of one layer's units.

    Attributes:
        family: (C,), equal for units that the group's generators exchange.
        size: (C,) units in the family; 0: unmatched, because it or one of its family does not exceed the null.
        lawful: (C,) whether the permutations obey the group's law there.
    """

    family: NDArray[np.int64]
    size: NDArray[np.int64]
    lawful: NDArray[np.bool_]


def take_census(group: FiniteGroup, units: Sequence[Units], space: Space, port: Port) -> Census:
    """Families under all generators together, from the units of each."""
    pis = [one.pi[space].numpy() for one in units]
    n = len(pis[0])
    matched = np.stack([one.matched(port).numpy() for one in units])
    edges = np.nonzero(matched)[1], np.stack(pis)[matched]  # a chance match joins no families
    _, family = connected_components(coo_array((np.ones(len(edges[0])), edges), shape=(n, n)), directed=False)
    lost = np.bincount(family, weights=~matched.all(0)) > 0
    size = np.where(lost[family], 0, np.bincount(family)[family])
    return Census(family.astype(np.int64), size, lawful(group, pis))


def lawful(group: FiniteGroup, pis: Sequence[NDArray[np.int64]]) -> NDArray[np.bool_]:
    """Where pi_g^ord(g) = id for each generator and (pi_g pi_h)^ord(gh) = id for each two: (C,).

    >>> from eqbench.groups import get_finite
    >>> lawful(get_finite("c4"), [np.array([1, 2, 3, 0, 5, 6, 4])]).tolist()  # a cycle of four, and one of three
    [True, True, True, True, False, False, False]
    """
    generators = list(group.generators())
    words = [(g, pi) for g, pi in zip(generators, pis, strict=True)]
    words += [
        (group.multiply(g, h), a[b]) for i, (g, a) in enumerate(words) for (h, b) in words[i + 1 : len(generators)]
    ]
    holds = np.ones(len(pis[0]), bool)
    for g, pi in words:
        image = pi
        for _ in range(order(group, g) - 1):
            image = pi[image]
        holds &= image == np.arange(len(pi))
    return holds


def order(group: FiniteGroup, g: Any) -> int:
    """The least k with g^k = e."""
    k, power, identity = 1, g, group.elements()[0]
    while power != identity:
        k, power = k + 1, group.multiply(g, power)
    return k
