"""Which layers the Lie derivative of the logits comes from: the chain rule, with one backward pass a random probe.

L(h . f) = (Lh) . f + dh (Lf), so that the network's error is sum_i J_{N:i+1} L f_i (Gruver et al. 2023, ICLR). With
D_i = J_{i:1} v_X, E_i = D_i - v_X(z_i) and g_i the gradient of <z, logits> with respect to layer i,

    <z, J_{N:i+1} L f_i> = <g_i, E_i> - <g_{i-1}, E_{i-1}>,

for all generators at once. It holds where layer i is a cut of the network, all of whose paths pass through it, and it is one
if <g_i, D_i> = <z, J v_X>: this is checked, and a layer that is none counts with the next one that is.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eqbench.probes.derivatives.tangents import Jacobian, Maps
from eqbench.stats import Array

PART = re.compile(r"(\[\d+\])?(:prefix)?$")  # of the name of a layer that is one of several tensors of its block


@dataclass
class Attribution:
    """Contributions of layers to the error of a network, for some images.

    Attributes:
        products: <g_i, E_i> of every layer, the logits last: (layers, probes, G, B).
        kept: <g_i, D_i>, likewise; <z, J v> in the last row.
        exact: whether the probes are all unit vectors, not random.
    """

    products: Array
    kept: Array
    exact: bool


def probes(images: int, classes: int, count: int, first: int) -> tuple[Tensor, bool]:
    """Random z ~ N(0, I), (count, images, classes); where there are no more classes than that, all unit vectors instead.

    Args:
        first: index of the first image: the probes of an image depend on its index alone.

    Returns:
        The probes, and whether they are unit vectors: sums over them are then exact.
    """
    if classes <= count:
        return torch.eye(classes)[:, None].expand(-1, images, -1), True
    drawn = [torch.randn(count, classes, generator=torch.Generator().manual_seed(first + i)) for i in range(images)]
    return torch.stack(drawn, 1), False


def blocks(layers: Sequence[str]) -> dict[str, list[str]]:
    """The layers that are one block's tensors, e.g. its map and its prefix tokens: together they may be a cut.

    >>> blocks(["stem", "blocks.0:prefix", "blocks.0", "logits"])
    {'stem': ['stem'], 'blocks.0': ['blocks.0:prefix', 'blocks.0'], 'logits': ['logits']}
    """
    found: dict[str, list[str]] = {}
    for name in layers:
        found.setdefault(PART.sub("", name), []).append(name)
    return found


def attribute(jacobian: Jacobian, x: Tensor, errors: Maps, tangents: Maps, count: int, first: int) -> Attribution:
    """The products of the chain rule for the images x (B, 3, n, n).

    Args:
        errors, tangents: E_i and D_i of every layer, (G, B, C, h, w); those of the logits are the same.
        count: random probes an image. first: index of the first image.
    """
    parts = blocks(list(errors))
    classes = errors["logits"].shape[2]
    z, exact = probes(len(x), classes, count, first)
    gradients: Maps = {}
    jacobian.forwards += len(x)
    flat = [
        torch.stack([torch.cat([maps[name].flatten(2) for name in names], 2) for maps in (errors, tangents)])
        for names in parts.values()
    ]
    rows: list[list[Tensor]] = [[] for _ in parts]
    with torch.enable_grad(), jacobian.taps.recording(gradients):
        x = x.detach().requires_grad_()
        y = jacobian.network(x)
        for probe in z.to(y):
            gradients.clear()
            gradients["logits"] = probe[:, :, None, None]
            torch.autograd.grad(y, x, probe, retain_graph=True)
            for row, names, both in zip(rows, parts.values(), flat, strict=True):
                there = [gradients[name] if name in gradients else torch.zeros_like(errors[name][0]) for name in names]
                g = torch.cat([gradient.flatten(1) for gradient in there], 1)
                row.append(torch.einsum("egbf,bf->egb", both, g))
    found = torch.stack([torch.stack(row) for row in rows]).double().cpu().numpy()
    return Attribution(found[:, :, 0], found[:, :, 1], exact)


def cuts(found: Sequence[Attribution], tolerance: float) -> list[int]:
    """Which rows are cuts: [ sum (<g_i, D_i> - <z, J v>)^2 / sum <z, J v>^2 ]^(1/2) < tolerance, over all images and probes."""
    kept = np.concatenate([one.kept for one in found], -1)
    off = ((kept - kept[-1]) ** 2).sum((1, 2, 3)) / (kept[-1] ** 2).sum()
    return [int(i) for i in np.flatnonzero(off < tolerance**2)]


def contributions(found: Sequence[Attribution], rows: Sequence[int]) -> tuple[Array, Array]:
    """|J_{N:i+1} L f_i|^2 of every cut, estimated from the probes, and the estimate's variance: (cuts, G, images) each.

    The terms of one image may cancel each other in the network's error; their squares, which these are, do not.
    """
    products = np.concatenate([one.products for one in found], -1)[list(rows)]
    squares = np.diff(products, axis=0, prepend=0.0) ** 2
    count = squares.shape[1]
    if found[0].exact:
        return squares.sum(1), np.zeros_like(squares[:, 0])
    return squares.mean(1), squares.var(1, ddof=1) / count
