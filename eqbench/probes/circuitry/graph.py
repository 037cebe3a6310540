"""The weight layers of a network, and the sets of channels that they read and write."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eqbench.errors import Misfit, Unsupported
from eqbench.groups import FiniteGroup
from eqbench.layouts import Layout

CHANNELS = 4096  # of a tensor, at most: matching them takes C^2 moments and C^3 steps


@dataclass(frozen=True, eq=False)
class Port:
    """A tensor that every forward pass shows: the first argument, or the output, of the module of this name."""

    module: str
    output: bool
    layout: Layout


@dataclass(eq=False)
class Space:
    """Channels that one permutation moves: tensors that additions, norms, activations and pools hand on unmixed.

    Attributes:
        channels: how many. ports: the tensors. image, logits: whether they are the image's colours, or the classes.
        blocks: equal runs of channels that stay together, as the groups of a convolution do; 1: each channel is free.
        joint: spaces of the same number have their blocks permuted alike.
    """

    channels: int
    joint: int
    ports: list[Port] = field(default_factory=list)
    image: bool = False
    logits: bool = False
    blocks: int = 1


@dataclass(eq=False)
class Weight:
    """A convolution or a linear layer, from one space to another.

    Attributes:
        depth: 0 to 1, by execution. shape: (out, in / groups, kh, kw).
        reads, writes: the spaces. source, target: what it is given, what it (or its batch norm) returns.
        raw: its own output, before any norm.
    """

    name: str
    depth: float
    shape: tuple[int, ...]
    groups: int
    reads: Space
    writes: Space
    source: Port
    target: Port
    raw: Port


@dataclass(eq=False)
class Heads:
    """Multi-head attention: the rows of qkv are (3, heads, d), the columns of proj (heads, d)."""

    name: str
    heads: int
    qkv: Weight
    proj: Weight


@dataclass
class Graph:
    """What `trace` found: weights in order of execution, those of `heads` not among them; refused: layer -> why."""

    weights: list[Weight]
    heads: list[Heads]
    refused: dict[str, str]

    @property
    def spaces(self) -> list[Space]:
        """Every space that is read or written, once."""
        both = [*self.weights, *(w for one in self.heads for w in (one.qkv, one.proj))]
        own = {one.qkv.writes for one in self.heads} | {one.proj.reads for one in self.heads}
        return [s for s in dict.fromkeys(s for w in both for s in (w.reads, w.writes)) if s not in own]


def given(args: Sequence[Any], named: dict[str, Any]) -> Tensor:
    """The input of a module that was called with these arguments: the first of them, by place or by name."""
    x: Tensor = args[0] if args else next(iter(named.values()))
    return x


def entries(graph: Graph) -> Iterator[tuple[str, Weight, Heads | None]]:
    """What is measured, by execution: (name, the weight that writes its output, its heads if it is attention)."""
    found: list[tuple[str, Weight, Heads | None]] = [(one.name, one, None) for one in graph.weights]
    found += [(one.name, one.proj, one) for one in graph.heads]
    yield from sorted(found, key=lambda entry: entry[1].depth)


def fitting(graph: Graph, group: FiniteGroup, size: int) -> Graph:
    """The graph without the layers that cannot be matched under a group.

    Raises:
        Unsupported: none is left.
    """

    def reason(one: Weight) -> str | None:
        for port, space in ((one.source, one.reads), (one.target, one.writes)):
            if space.channels > CHANNELS:
                return f"{space.channels} channels: more than {CHANNELS} are not matched"
            if group.spatial and port.layout.grid != (1, 1):
                try:
                    group.act_features(torch.zeros(1, 1, *(port.layout.grid or ())), group.generators()[0], size)
                except Misfit as error:
                    return str(error)
        return None

    refused = dict(graph.refused)
    for one in [*graph.weights, *(w for heads in graph.heads for w in (heads.qkv, heads.proj))]:
        why = reason(one)
        refused |= {one.name: why} if why else {}
    weights = [one for one in graph.weights if one.name not in refused]
    heads = [one for one in graph.heads if not {one.qkv.name, one.proj.name} & refused.keys()]
    if not weights and not heads:
        raise Unsupported(f"no layer can be matched: {next(iter(refused.values()))}")
    ends = [(space, port) for one in weights for space, port in ((one.reads, one.source), (one.writes, one.target))]
    ends += [end for one in heads for end in ((one.qkv.reads, one.qkv.source), (one.proj.writes, one.proj.target))]
    left = Graph(weights, heads, refused)
    for space in left.spaces:
        ports = list(dict.fromkeys(port for owner, port in ends if owner is space))
        # A vector has one position an image: it adds little but noise to the matching of maps.
        space.ports = [port for port in ports if port.layout.grid != (1, 1)] or ports
    return left
