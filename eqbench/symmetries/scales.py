"""S11, S12: all that a residual stream (or one layer) writes, larger together, is the same after layer norms."""

from collections.abc import Iterator

import torch
from torch import Tensor

from eqbench.symmetries.dataflow import Dataflow, Node, owners
from eqbench.symmetries.transformations import Symmetry, Weights

DIVIDING = ("layer_norm", "group_norm", "rms_norm")
WRITERS = ("linear", "parameter", "scale", "batch_norm", "layer_norm", "group_norm", "rms_norm")


def stream_scales(flow: Dataflow, source: torch.Generator) -> Iterator[Symmetry]:
    """All weights and biases of a stream's writers times exp(t a): S11 of several writers, S12 of one."""
    for writers in _streams(flow):
        a = float(torch.randn((), generator=source, dtype=torch.float64)) * 0.5
        names = tuple(name for node in writers for name in (node.weight, node.bias) if name)

        def curve(theta: Weights, t: Tensor, names: tuple[str, ...] = names, a: float = a) -> Weights:
            return {name: theta[name] * torch.exp(t * a) for name in names}

        yield Symmetry("S11" if len(writers) > 1 else "S12", writers[0].name, curve, names)


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
