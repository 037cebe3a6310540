"""The symmetry of weights: how alike a layer is to itself, its kernels moved by g and its channels exchanged as g does."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from eqbench.errors import Misfit
from eqbench.groups import FiniteGroup
from eqbench.models import Network
from eqbench.probes.circuitry.graph import Graph, Heads, Weight
from eqbench.probes.circuitry.units import Units
from eqbench.stats import Array

ROUNDING = 1e-9  # a weight that differs from its image by less is left in place


@dataclass
class Products:
    """Sums over each output unit's weights w and their images gw: <w, gw>, |w|^2, |gw|^2, (3, units).

    Attributes:
        matched: the first over weights between matched units alone, the others over all.
        moved: over those that g does not leave in place by exchanging nothing.
    """

    matched: Array
    moved: Array


def cosine(sums: Sequence[Array], w: Array) -> Array:
    """Cos(W, gW) for weights w (B, units) on the output units, the mean over `sums` (3, units), one a generator."""
    each = [(w @ s[0]) / np.sqrt((w @ s[1]) * (w @ s[2])) for s in sums]
    return np.mean(each, 0)


def layer_products(
    weight: Tensor, one: Weight, units: Units, group: FiniteGroup, g: Any, std: Tensor
) -> Products | None:
    """W and g W = R_g^-1 W[pi_out(.), pi_in(.)], an output channel; None: g does not act on kernels of this shape.

    If f_{pi(i)}(gx) = g f_i(x) for what a layer reads and for what it writes, then W = gW.

    Args:
        weight: (out, in / groups, kh, kw). std: (3, 1, 1) by which colours are divided before the network sees them.
    """

    def columns(of_inputs: Tensor) -> Tensor:  # a row reads its group's inputs
        return of_inputs.view(one.groups, -1).repeat_interleave(weight.shape[0] // one.groups, 0)[:, :, None, None]

    def move(w: Tensor) -> Tensor:
        w = w[units.pi[one.writes]].gather(1, columns(units.pi[one.reads] % w.shape[1]).expand(w.shape))
        if group.spatial:
            return group.act_kernels(w, group.inverse(g))
        return group.act_kernels(w / std, group.inverse(g)) * std if one.reads.image else w

    weight = weight.double().cpu()
    probe = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    known, alive = torch.ones(3, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)
    if not one.reads.image:
        known, alive = units.matched(one.source), units.alive[one.source]
    matched = units.matched(one.target)[:, None, None, None] & columns(known)
    try:
        image, moved = move(weight), (move(probe) - probe).abs() > ROUNDING
    except Misfit:
        return None
    return _products(
        weight * columns(alive[0]), image * columns(alive[1]), matched, moved
    )  # else what is read is a bias


def same_on_kernels(group: FiniteGroup, other: FiniteGroup) -> bool:
    """Whether both groups move kernels alike: then one is no placebo of the other, as far as weights are concerned."""
    probe = torch.rand(1, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    images = [{tuple(one.act_kernels(probe, g).flatten().tolist()) for g in one.elements()} for one in (group, other)]
    return images[0] == images[1]


def head_products(qkv: Tensor, proj: Tensor, one: Heads, units: Units) -> list[Products]:
    """The same for attention, a head: of its two circuits, W_O W_V and W_Q^T W_K (Elhage et al. 2021).

    They are what a head computes: the bases of its queries and keys, and of its values, are its own and cancel.

    Args:
        qkv: (3 heads d, in). proj: (out, heads d).
    """
    query, key, value = qkv.double().cpu().unflatten(0, (3, one.heads, -1))
    out = proj.double().cpu().unflatten(1, (one.heads, -1)).transpose(0, 1)
    pi, into, onto = units.heads[one], units.pi[one.qkv.reads], units.pi[one.proj.writes]
    given, written = units.matched(one.qkv.source), units.matched(one.proj.target)
    found = []
    for circuit, rows, known in ((out @ value, onto, written), (query.mT @ key, into, given)):
        image = circuit[pi][:, rows][:, :, into]
        here = [index == torch.arange(len(index)) for index in (pi, rows, into)]
        still = here[0][:, None, None] & here[1][:, None] & here[2]
        found.append(_products(circuit, image, known[:, None] & given, ~still))
    return found


def _products(w: Tensor, image: Tensor, matched: Tensor, moved: Tensor) -> Products:
    sums = torch.stack([w * image, w.square(), image.square()])
    whole = sums.flatten(2).sum(2)
    whole[0] = (sums[0] * matched).flatten(1).sum(1)
    return Products(whole.numpy(), (sums * moved).flatten(2).sum(2).numpy())


class _Applied(TorchFunctionMode):
    """Notes what the last convolution or linear map was called with: some weights are standardised on the way."""

    weight: Tensor
    touched: Tensor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(zip(("input", "weight", "bias", "stride", "padding", "dilation"), args, strict=False)) | (
            kwargs or {}
        )
        if func is nn.functional.linear:
            self.weight, self.touched = named["weight"], torch.ones(1, 1)
        elif func is nn.functional.conv2d:
            self.weight = named["weight"]
            height, width = self.weight.shape[2:]
            taps = torch.eye(height * width).view(-1, 1, height, width)
            where = {key: named[key] for key in ("stride", "padding", "dilation") if key in named}
            self.touched = (
                func(torch.ones(1, 1, *named["input"].shape[2:]), taps, **where).amax((0, 2, 3)).view(height, width)
            )
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def applied_weights(network: nn.Module, graph: Graph, x: Tensor) -> dict[Weight, Tensor]:
    """Every layer's weight (out, in / groups, kh, kw) as images x (B, 3, n, n) meet it.

    That is: standardised where the layer does so, with the batch norm that follows folded in, gamma / sqrt(var + eps) W,
    and 0 for taps that see nothing but padding: at small maps most of a large kernel.
    """
    inner = network.module if isinstance(network, Network) else network
    found: dict[Weight, Tensor] = {}
    every = [*graph.weights, *(one for heads in graph.heads for one in (heads.qkv, heads.proj))]
    with ExitStack() as stack, _Applied() as applied:
        for one in every:

            def note(module: nn.Module, args: Any, y: Any, one: Weight = one) -> None:
                found[one] = applied.weight.reshape(one.shape) * (applied.touched > 0).to(applied.weight)

            stack.callback(inner.get_submodule(one.name).register_forward_hook(note).remove)
        network(x)
    for one in every:
        norm: Any = inner.get_submodule(one.target.module)
        if norm is not inner.get_submodule(one.name) and norm.running_var is not None:
            scale = (norm.running_var + norm.eps).rsqrt()
            found[one] = found[one] * (scale if norm.weight is None else norm.weight * scale)[:, None, None, None]
    return found
