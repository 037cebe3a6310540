"""S11, S12: all that a residual stream (or one layer) writes, larger together, is the same after layer norms."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from eqbench.symmetries.dataflow import Dataflow, Node, owners
from eqbench.symmetries.transformations import Symmetry, Weights

DIVIDING = ("layer_norm", "group_norm", "rms_norm")
WRITERS = ("linear", "parameter", "scale", "batch_norm", "layer_norm", "group_norm", "rms_norm")


@dataclass(eq=False)
class Stream:
    """All weights and biases of a stream's writers, which dividing norms alone read: S11 of several writers, S12 of one."""

    writers: list[Node]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for node in self.writers for name in (node.weight, node.bias) if name)

    @property
    def unit(self) -> Tensor:
        return torch.ones((), dtype=torch.float64)

    def curve(self, a: Tensor) -> Symmetry:
        """T_t: all times exp(t a)."""

        def curve(theta: Weights, t: Tensor) -> Weights:
            return {name: theta[name] * torch.exp(t * a.to(t)) for name in self.names}

        family = "S11" if len(self.writers) > 1 else "S12"
        return Symmetry(family, self.writers[0].name, curve, self.names, origin=self, c=a)

    def direction(self, theta: Weights, a: Tensor) -> Weights:
        """K: all times a."""
        return {name: theta[name] * a.to(theta[name]) for name in self.names}


def stream_scales(flow: Dataflow, source: torch.Generator) -> Iterator[Symmetry]:
    """A random element of every stream."""
    for writers in _streams(flow):
        yield Stream(writers).curve(0.5 * torch.randn((), generator=source, dtype=torch.float64))


def _streams(flow: Dataflow) -> list[list[Node]]:
    """Writers that meet in sums, of which each is read by dividing norms alone; a max(0, x) between changes nothing."""
    group: dict[Node, set[Node]] = {}
    for use in flow.uses:
        if use.node.kind in DIVIDING:
            joined = set().union(*(group.get(node, {node}) for node in owners(flow, use.codes)))
            group |= dict.fromkeys(joined, joined)

    def scalable(node: Node) -> bool:
        return (
            node.kind in WRITERS and node.weight is not None and node.bias_codes is None
            and all(use.node.kind in DIVIDING and use.flags[i] <= {"relu"} for use, i in flow.uses_of(node))
        )  # fmt: skip

    streams = {id(nodes): nodes for nodes in group.values()}.values()
    ordered = [sorted(nodes, key=lambda node: node.start) for nodes in streams if all(map(scalable, nodes))]
    return sorted(ordered, key=lambda nodes: nodes[0].start)
