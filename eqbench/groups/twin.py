"""The symmetrised twin: the same architecture with weights averaged over a group, invariant wherever its grid allows.

Kernels of convolutions, position embeddings, relative-position tables and token-mixing layers are replaced by their
mean over the group's spatial action; batch-norm statistics are taken anew. Whatever error the twin still shows comes
from the sampling grid of the architecture (stride, padding, windows), not from what it learned.
"""

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from eqbench.groups.base import FiniteGroup


def symmetrise(module: nn.Module, group: FiniteGroup) -> nn.Module:
    """A copy whose weights are (1/|G|) sum_g g W, for every weight on which the group is known to act.

    Args:
        module: any network; tokens are recognised by timm's names for them.
        group: a finite group that acts on square maps.

    >>> from eqbench.groups import get
    >>> twin = symmetrise(nn.Conv2d(3, 8, 3), get("d4"))
    >>> bool((twin.weight - twin.weight.rot90(1, (-2, -1))).abs().max() < 1e-6)
    True
    """
    twin = copy.deepcopy(module)
    with torch.no_grad():
        for layer in twin.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.copy_(_mean(layer.weight, group))
        for name, parameter in twin.named_parameters():
            leaf = name.rsplit(".", 1)[-1]
            if leaf in ("pos_embed", "position_embedding"):
                parameter.copy_(_tokens_mean(parameter, group))
            elif leaf == "relative_position_bias_table":  # ((2h - 1)(2w - 1), heads): offsets between tokens
                side = math.isqrt(parameter.shape[0])
                parameter.copy_(_mean(parameter.T.reshape(-1, side, side), group).reshape(parameter.shape[::-1]).T)
            elif ".mlp_tokens.fc1." in name and leaf == "weight":  # (hidden, tokens)
                parameter.copy_(_grid_mean(parameter, group))
            elif ".mlp_tokens.fc2." in name:  # (tokens, hidden), or the bias (tokens,)
                flat = parameter.reshape(parameter.shape[0], -1).T
                parameter.copy_(_grid_mean(flat, group).T.reshape(parameter.shape))
    return twin


def _mean(maps: Tensor, group: FiniteGroup) -> Tensor:
    """The mean over g of g z for maps (..., h, w); over the g that keep the shape, where h and w differ."""
    images = [group.act(maps, g) for g in group.elements()] if maps.shape[-1] == maps.shape[-2] else [maps]
    return torch.stack(images).mean(0)


def _grid_mean(rows: Tensor, group: FiniteGroup) -> Tensor:
    """`_mean` for rows (..., tokens) whose last axis is a square grid."""
    side = math.isqrt(rows.shape[-1])
    return _mean(rows.reshape(*rows.shape[:-1], side, side), group).reshape(rows.shape)


def _tokens_mean(embedding: Tensor, group: FiniteGroup) -> Tensor:
    """The mean for (1, prefix + tokens, channels), or for a map (1, channels, h, w) as it is."""
    if embedding.ndim == 4:
        return _mean(embedding, group)
    side = math.isqrt(embedding.shape[1])
    prefix = embedding.shape[1] - side * side
    tokens = _grid_mean(embedding[:, prefix:].mT, group).mT
    return torch.cat([embedding[:, :prefix], tokens], 1)


@torch.no_grad()
def reset_batch_norm(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace running statistics by those of these batches (cumulative mean); leaves the network in evaluation mode."""
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for x in batches:
        module(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()


def blank(module: nn.Module) -> nn.Module:
    """A copy with seeded random weights, for questions about the architecture alone: the same whatever it learned."""
    fresh = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in fresh.named_parameters():
            if parameter.ndim >= 2:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
                fan_in = math.prod(parameter.shape[1:]) if name.endswith("weight") else 2500.0
                parameter.copy_(noise * math.sqrt(2 / fan_in))
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return fresh


def relative_error(moved: Iterable[Tensor], still: Tensor) -> float:
    """[ sum_x mean_g |f(gx) - f(x)|^2 / sum_x |f(x) - mean f|^2 ]^(1/2) of logits (n, classes)."""
    still = still.double()
    gap = torch.stack([(y.double() - still).square().sum() for y in moved]).mean()
    return float((gap / (still - still.mean(0)).square().sum()).sqrt())


ALIGNED = 1e-3  # twin floor below which a size counts as aligned


@torch.no_grad()
def aligned_size(network: nn.Module, group: FiniteGroup, native: int, below: int, above: int) -> tuple[int, float]:
    """The input size nearest to the native one at which the architecture itself can be invariant.

    The twin of a blank copy is tried on four noise images, sizes in order of their distance from `native`; the first
    below `ALIGNED` is taken, else the best of all. Sizes that the architecture refuses are passed over.

    Args:
        network: maps (B, 3, n, n) to logits. group: a finite lattice group.
        native, below, above: pixels; the sizes from native - below to native + above are searched.

    Returns:
        (size in pixels, relative error of the twin there).
    """
    twin = symmetrise(blank(network), group)
    tried: dict[int, float] = {}
    like = next(network.parameters(), torch.zeros(()))
    sizes = range(max(native - below, 8), native + above + 1)
    for size in sorted(sizes, key=lambda size: (abs(size - native), -size)):
        generator = torch.Generator().manual_seed(size)
        x = torch.rand(4, 3, size, size, generator=generator).to(like)
        try:
            reset_batch_norm(twin, [x])
            tried[size] = relative_error((twin(group.act(x, g)) for g in group.generators()), twin(x))
        except (RuntimeError, AssertionError, ValueError):
            continue  # a fixed-size architecture
        if tried[size] < ALIGNED:
            return size, tried[size]
    finite = {size: error for size, error in tried.items() if math.isfinite(error)}
    return min(finite.items(), key=lambda item: item[1]) if finite else (native, math.nan)
