"""The action of a group on weights, T_g: on kernels, on position embeddings and tables, on layers that mix tokens."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from eqbench import functional
from eqbench.groups.base import FiniteGroup
from eqbench.groups.lattice import LatticeGroup

Move = Callable[[Tensor], Tensor]


def act_on_weights(module: nn.Module, group: FiniteGroup, g: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """T_g theta: the action of one element on weights (or gradients, directions) by the names of parameters; linear.

    Where the architecture's grid is symmetric, f(g x; T_g theta) = f(x; theta): see `law_error`. What the group does not
    move is returned as it is.

    Args:
        module: says what each parameter is, as in `symmetrise`; its own weights do not matter.

    Raises:
        Misfit: the element does not keep the shape of a kernel or of a grid of tokens.

    >>> from eqbench.groups import get
    >>> from eqbench.groups.lattice import HFLIP
    >>> net, x = nn.Conv2d(3, 8, 3), torch.randn(2, 3, 9, 9)
    >>> moved = act_on_weights(net, get("hflip"), HFLIP, dict(net.named_parameters()))
    >>> flipped = torch.func.functional_call(net, moved, (x.flip(-1),))
    >>> bool((flipped.flip(-1) - net(x)).abs().max() < 1e-5)
    True
    """

    def tokens(maps: Tensor) -> Tensor:
        return group.act(maps, g) if isinstance(group, LatticeGroup) else group.act_features(maps, g, size)

    size = max((max(grid) * patch for grid, patch in _patches(module)), default=None)
    return weights | dict(each_moved(module, group, weights, lambda w: group.act_kernels(w, g), tokens))


@torch.no_grad()
def law_error(module: nn.Module, group: FiniteGroup, g: Any, x: Tensor) -> float:
    """How far the network is from f(g x; T_g theta) = f(x; theta): |f(g x; T_g theta) - f(x; theta)| / |f(x; theta)|.

    Args:
        module: in float64, and not with weights that hide a part of it, as a norm with scale 0 does. x: (B, 3, n, n).

    Raises:
        Misfit: the element does not act on the images, or on a weight.
    """
    still = module(x)
    moved = functional.call(module, act_on_weights(module, group, g, dict(module.named_parameters())), group.act(x, g))
    return float((moved - still).norm() / still.norm())


def each_moved(
    network: nn.Module,
    group: FiniteGroup,
    weights: dict[str, Tensor],
    kernels: Move,
    tokens: Move,
) -> Iterator[tuple[str, Tensor]]:
    """The weights that a group moves, by name: each after `kernels` (out, in, h, w), or after `tokens` for maps (..., h, w)."""
    std = getattr(network, "std", 1.0)  # of a `Network`, (3, 1, 1); another module's `std` may be anything
    std = std if isinstance(std, Tensor) and std.shape == (3, 1, 1) else 1.0
    for name, weight in weights.items():
        path, _, leaf = name.rpartition(".")
        parent = network.get_submodule(path)
        if isinstance(parent, nn.Conv2d) and leaf == "weight":
            if group.spatial:
                yield name, kernels(weight)
            elif weight.shape[1] == 3 and parent.groups == 1:
                yield name, kernels(weight / std) * std
        elif not group.spatial:
            continue
        elif leaf in ("pos_embed", "position_embedding"):
            yield name, _on_tokens(weight, _grid(parent), tokens)
        elif leaf == "relative_position_bias_table":
            yield name, _on_offsets(weight, tokens)
        elif ".mlp_tokens.fc1." in name and leaf == "weight":  # (hidden, tokens)
            yield name, _on_square(weight, tokens)
        elif ".mlp_tokens.fc2." in name:  # (tokens, hidden), or the bias (tokens,)
            yield name, _on_square(weight.reshape(weight.shape[0], -1).T, tokens).T.reshape(weight.shape)


def _on_square(rows: Tensor, tokens: Move) -> Tensor:
    """For rows (..., tokens) whose last axis is a square grid; other rows stay."""
    side = math.isqrt(rows.shape[-1])
    if side * side != rows.shape[-1]:
        return rows
    return tokens(rows.reshape(*rows.shape[:-1], side, side)).reshape(rows.shape)


def _on_offsets(table: Tensor, tokens: Move) -> Tensor:
    """For a bias a pair of tokens: ((2h - 1)(2w - 1) [+ 3 of a class token], heads), or (heads, 2h - 1, 2w - 1)."""
    if table.ndim == 3:
        return tokens(table)
    side = math.isqrt(table.shape[0])
    return torch.cat([_on_square(table[: side * side].T, tokens).T, table[side * side :]])


def _patches(network: nn.Module) -> Iterator[tuple[tuple[int, int], int]]:
    """The grids of patch tokens that a network makes, and the sides of their patches, in pixels."""
    for module in network.modules():
        grid, sides = _grid(module), getattr(getattr(module, "patch_embed", None), "patch_size", None)
        if grid is not None and sides is not None:
            yield grid, int(sides[0])


def _grid(owner: nn.Module) -> tuple[int, int] | None:
    """The grid of patch tokens that a module's embedding says it makes."""
    grid = getattr(getattr(owner, "patch_embed", None), "grid_size", None)
    return (int(grid[0]), int(grid[1])) if grid is not None else None


def _on_tokens(embedding: Tensor, grid: tuple[int, int] | None, tokens: Move) -> Tensor:
    """For (1, prefix + h w, channels), a map (1, channels, h, w), or (1, h, w, channels); others stay."""
    if embedding.ndim == 4:
        last = embedding.shape[1] == embedding.shape[2] != embedding.shape[3]
        return tokens(embedding.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if last else tokens(embedding)
    if embedding.ndim != 3 or grid is None or embedding.shape[1] < grid[0] * grid[1]:
        return embedding
    prefix = embedding.shape[1] - grid[0] * grid[1]
    moved = tokens(embedding[:, prefix:].mT.unflatten(-1, grid)).flatten(-2).mT
    return torch.cat([embedding[:, :prefix], moved], 1)
