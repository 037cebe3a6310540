"""S1, S3: translations of weights that a softmax or a layer norm takes out again; with S2 they span an exact null space."""

from collections.abc import Iterator

import torch
from torch import Tensor

from eqbench.symmetries.dataflow import Dataflow, Node, owners
from eqbench.symmetries.transformations import Symmetry, Weights

CENTRING = (
    "layer_norm",
    "group_norm",
    "rms_norm",
)  # an RMS norm does not centre: proposed with the others, and refuted

STEP = 0.1  # of a finite shift, a weight


def softmax_shifts(flow: Dataflow, source: torch.Generator) -> Iterator[Symmetry]:
    """S1: W + 1 c', b + t 1 add c'z + t to every logit, which softmax does not see: fan-in + 1 null dimensions."""
    for node in heads(flow):
        yield shift("S1", flow, node, source)


def heads(flow: Dataflow) -> list[Node]:
    """The linear layers of which the logits are a sum, or a mean; none if anything else is in it."""
    found = []
    for codes, flags in zip(flow.logits.codes, flow.logits.flags, strict=True):
        nodes = list(owners(flow, codes))
        if (
            len(nodes) != 1
            or nodes[0].kind != "linear"
            or flags
            or nodes[0].groups > 1
            or nodes[0].bias_codes is not None
        ):
            return []
        if not torch.equal(nodes[0].channel(codes), torch.arange(nodes[0].channels)):
            return []
        if any(use is not flow.logits for use, _ in flow.uses_of(nodes[0])):
            return []
        found += nodes
    return found


def norm_shifts(flow: Dataflow, source: torch.Generator) -> Iterator[Symmetry]:
    """S3: what is added to all channels alike is gone after a layer norm, if layer norms alone read them.

    W + 1 c', b + t 1 over a writer's output channels: fan-in + 1 null dimensions; 1 (the bias) where several positions meet
    in one norm (patch merging) or the writer is grouped; a parameter that is added has one for each position.
    """
    for node in flow.nodes:
        if node.kind not in ("linear", "parameter", "batch_norm", "layer_norm", "group_norm") or not (
            uses := flow.uses_of(node)
        ):
            continue
        if any(use.node.kind not in CENTRING or use.flags[i] for use, i in uses):
            continue
        copies = [_copies(node, use.codes[i]) for use, i in uses]
        if 0 in copies:
            continue
        alone = max(copies) > 1 or node.kind not in ("linear", "parameter") or node.groups > 1
        alone |= any(use.node.kind == "group_norm" for use, _ in uses)
        if node.bias_codes is None and (not alone or node.bias is not None):
            yield shift("S3", flow, node, source, bias_alone=alone)


def _copies(node: Node, codes: Tensor) -> int:
    """How often each channel of a node, and nothing else, is among these columns; 0 if that is no one number."""
    counts = torch.bincount(node.channel(codes)[codes >= node.start], minlength=node.channels)
    even = len(counts) == node.channels and int(counts.min()) == int(counts.max())
    return int(counts[0]) if even and int(counts.sum()) == len(codes) else 0


def shift(family: str, flow: Dataflow, node: Node, source: torch.Generator, bias_alone: bool = False) -> Symmetry:
    """W + t 1 c', b + t s 1 with random c and s, over the output channels of a node."""
    steps: Weights = {}
    for name in filter(None, (None if bias_alone else node.weight, node.bias)):
        axis = node.axis if node.kind == "parameter" else 0
        shape = [1 if d == axis % len(flow.shapes[name]) else n for d, n in enumerate(flow.shapes[name])]
        steps[name] = STEP * torch.randn(shape, generator=source, dtype=torch.float64)

    def curve(theta: Weights, t: Tensor) -> Weights:
        return {name: theta[name] + t * c.to(t) for name, c in steps.items()}

    return Symmetry(family, node.name, curve, tuple(steps), sum(c.numel() for c in steps.values()), family == "S1")
