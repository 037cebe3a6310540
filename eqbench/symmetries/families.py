"""The families of continuous symmetries: the proposal of their instances from a network's data flow, and their proof."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from eqbench.curvature.objective import Objective
from eqbench.metrics.symmetries import BUT_FOR_EPS, CONTROL
from eqbench.symmetries import affine, attention, dataflow, rescalings, scales, shifts
from eqbench.symmetries.transformations import Symmetry, Verdict, confirm

NULL = ("S1", "S2", "S3")  # translations: their directions are null vectors of the Hessian anywhere


def propose(module: nn.Module, flow: dataflow.Dataflow, seed: int = 0) -> list[Symmetry]:
    """One instance, with a random element, of every family at every place where the data flow suggests it.

    Batch norms that keep running statistics have S10, those that use the batch's own have S9.
    """
    source = torch.Generator().manual_seed(seed)
    own_statistics = any(node.kind == "batch_norm" and node.statistics is None for node in flow.nodes)
    buffers = {name: b.detach().cpu() for name, b in module.named_buffers()}
    found = [
        *shifts.softmax_shifts(flow, source),
        *attention.key_biases(flow, source),
        *shifts.norm_shifts(flow, source),
        *(rescalings.random(one, source) for one in rescalings.find(flow)),
        *affine.bias_translations(flow, source),
        *(pair.random(source) for pair in attention.pairs(flow)),
        *(affine.batch_norm_scales(flow, source) if own_statistics else affine.batch_norm_gauge(flow, buffers, source)),
        *scales.stream_scales(flow, source),
    ]
    known = set(flow.shapes)
    return [one for one in found if set(one.names) <= known]


def confirm_but_for_eps(near: Objective, proposed: Sequence[Symmetry]) -> Verdict:
    """`confirm`, with the norms' eps negligible for the families that are exact but for it; the control is left out."""
    exact = confirm(near, [one for one in proposed if one.family not in (*BUT_FOR_EPS, CONTROL)])
    scaled = [one for one in proposed if one.family in BUT_FOR_EPS]
    more = confirm(near.without_eps(), scaled) if scaled else Verdict()
    return Verdict(exact.confirmed + more.confirmed, exact.refuted + more.refuted)


def control(flow: dataflow.Dataflow, proposed: list[Symmetry], seed: int = 1) -> list[Symmetry]:
    """What the checks must refuse: rescaling through GELU and its like, or where there is none, of the writers alone.

    First-order residuals are small for the former, second-order ones are not.
    """
    bent = [one for one in proposed if one.family == CONTROL]
    if bent:
        return bent
    source, found = torch.Generator().manual_seed(seed), []
    for one in rescalings.find(flow):
        writers = [replace(layer, reads=None) for layer in one.layers if layer.node.name == one.name]
        found.append(rescalings.random(replace(one, family=CONTROL, layers=writers), source))
    return found
