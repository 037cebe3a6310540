"""The symmetrised twin: the same architecture with weights averaged over a group, invariant wherever its grid allows.

- Kernels of convolutions are replaced by their mean over the group's action on kernels; of a group of colours, only the
  kernel that sees the image.
- Position embeddings, relative-position tables and token-mixing layers are replaced by their mean over the action of mirrors
  and turns; under other groups that move pixels, by their mean over all positions, which no movement changes.
- Batch-norm statistics are taken anew.

Whatever error the twin still shows comes from the architecture (stride, padding, windows, kernels across patches), not from
what it learned; a group whose action on kernels is not known has a twin that is no better than the network.
"""

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from eqbench.errors import Misfit, Unsupported, one_line, out_of_memory
from eqbench.groups.base import FiniteGroup
from eqbench.groups.lattice import LatticeGroup
from eqbench.groups.weights import each_moved


def symmetrise(module: nn.Module, group: FiniteGroup) -> nn.Module:
    """A copy whose weights are (1/|G|) sum_g T_g theta, for every weight on which the group is known to act.

    Args:
        module: any network; tokens are recognised by timm's names for them, the kernel that sees the image by its three
            input channels, the normalisation of the image by the `std` of a `Network`.
        group: a finite group.

    >>> from eqbench.groups import get
    >>> twin = symmetrise(nn.Conv2d(3, 8, 3), get("d4"))
    >>> bool((twin.weight - twin.weight.rot90(1, (-2, -1))).abs().max() < 1e-6)
    True
    """
    twin = copy.deepcopy(module)
    own: dict[str, Tensor] = dict(twin.named_parameters())
    with torch.no_grad():
        for name, weight in each_moved(twin, group, own, lambda w: _kernels_mean(w, group), lambda z: _mean(z, group)):
            own[name].copy_(weight)
    return twin


def _kernels_mean(kernels: Tensor, group: FiniteGroup) -> Tensor:
    """The mean of g w over the g that keep the shape of the kernels w (out, in, h, w)."""
    square = kernels.shape[-1] == kernels.shape[-2]
    turned = [group.act_kernels(kernels, g) for g in group.elements() if square or group.keeps_shape(g)]
    return torch.stack(turned).mean(0)


def _mean(maps: Tensor, group: FiniteGroup) -> Tensor:
    """The mean of g z for maps (..., h, w), over the g that keep their shape; of groups unknown, over all positions."""
    if not isinstance(group, LatticeGroup):
        return maps.mean((-2, -1), keepdim=True).expand_as(maps)
    square = maps.shape[-1] == maps.shape[-2]
    return torch.stack([group.act(maps, g) for g in group.elements() if square or group.keeps_shape(g)]).mean(0)


@torch.no_grad()
def reset_batch_norm(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace running statistics by those of these batches (cumulative mean); leaves the network in evaluation mode."""
    norms = {
        layer: layer.momentum
        for layer in module.modules()
        if isinstance(layer, _BatchNorm) and layer.track_running_stats
    }
    if not norms:
        return
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        for x in batches:
            module(x)
    finally:
        for norm, momentum in norms.items():
            norm.momentum = momentum
        module.eval()


def blank(module: nn.Module, seed: int = 0) -> nn.Module:
    """A copy with seeded random weights, for questions about the architecture alone: the same whatever it learned."""
    fresh = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in fresh.named_parameters():
            if not is_vector(parameter):
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
                fan_in = math.prod(parameter.shape[1:]) if name.endswith("weight") else 2500.0
                parameter.copy_(noise * math.sqrt(2 / fan_in))
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return fresh


def is_vector(parameter: Tensor) -> bool:
    """Whether a parameter is one number a channel: (channels,), or (channels, 1, 1, 1) like the gains of scaled weights."""
    return math.prod(parameter.shape[1:]) == 1


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
        network: maps (B, 3, n, n) to logits. group: a finite group.
        native, below, above: pixels; the sizes from native - below to native + above are searched.

    Returns:
        (size in pixels, relative error of the twin there).

    Raises:
        Unsupported: the architecture refuses every size.
    """
    twin = symmetrise(blank(network), group)
    tried: dict[int, float] = {}
    refusals: list[Exception] = []
    like = next(network.parameters(), torch.zeros(()))
    sizes = range(max(native - below, 8), native + above + 1)
    for size in sorted(sizes, key=lambda size: (abs(size - native), -size)):
        generator = torch.Generator().manual_seed(size)
        x = torch.rand(4, 3, size, size, generator=generator).to(like)
        try:
            reset_batch_norm(twin, [x])
            tried[size] = relative_error((twin(group.act(x, g)) for g in group.generators()), twin(x))
        except (RuntimeError, AssertionError, ValueError, Misfit) as error:
            if out_of_memory(error):
                raise
            refusals.append(error)
            continue
        if tried[size] < ALIGNED:
            return size, tried[size]
    if not tried:
        raise Unsupported(f"images of {native} px, and all sizes near, are refused: {one_line(refusals[0])}")
    return min(tried.items(), key=lambda item: (math.isnan(item[1]), item[1], abs(item[0] - native)))
