"""The action of a group element on the vector of all weights, with the hidden channels put back in order: Q = P^-1 T_g."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from eqbench.curvature.objective import Objective
from eqbench.errors import Misfit, Unsupported
from eqbench.groups import FiniteGroup
from eqbench.groups.weights import act_on_weights, law_error
from eqbench.symmetries import balance
from eqbench.symmetries.permutation import Permutation, find_spaces, general_position, permute

LAW = 1e-10  # largest relative error, in float64, of f(g x; T_g theta) = f(x; theta)


@dataclass
class Reordering:
    """An orthogonal map of weight vectors that permutes their entries: (Qv)_i = v[index_i].

    >>> turn = Reordering(torch.tensor([1, 2, 0, 3]))
    >>> v = torch.tensor([3.0, 6.0, 9.0, 1.0])
    >>> turn(v).tolist(), turn.fixed(v).tolist(), turn.order
    ([6.0, 9.0, 3.0, 1.0], [6.0, 6.0, 6.0, 1.0], 3)
    """

    index: Tensor

    def __call__(self, v: Tensor) -> Tensor:
        """Qv of vectors (..., size)."""
        return v[..., self.index]

    def fixed(self, v: Tensor) -> Tensor:
        """The mean of Q^k v over the cyclic group that Q generates: the projection on the vectors that Q fixes."""
        cycles, sizes = self._cycles()
        sums = torch.zeros(len(sizes), dtype=v.dtype, device=v.device).index_add_(0, cycles, v)
        return (sums / sizes.to(v))[cycles]

    @property
    def order(self) -> int:
        """The smallest k with Q^k = 1."""
        return math.lcm(*self._cycles()[1].unique().tolist())

    def _cycles(self) -> tuple[Tensor, Tensor]:
        """The cycle of each entry, and the sizes of cycles."""
        to = self.index.cpu().numpy()
        graph = coo_array((torch.ones(len(to)).numpy(), (torch.arange(len(to)).numpy(), to)), (len(to), len(to)))
        cycles = torch.from_numpy(connected_components(graph, directed=False)[1]).long()
        return cycles.to(self.index.device), cycles.bincount()


@dataclass
class Actions:
    """What one element does to weights: T_g alone, Q = P^-1 T_g with the channels matched, and with random P."""

    bare: Reordering
    matched: Reordering
    random: list[Reordering]


def canonical(network: nn.Module, x: Tensor) -> nn.Module:
    """The same function at weights that no rescaling of channels has a part in, and without running statistics.

    Batch norms have their statistics in scale and shift, gamma' = gamma / sigma and beta' = beta - mu gamma / sigma, so that
    weights alone decide; `symmetries.balance` settles what is left.
    """
    return balance(absorbed(network), x)


def absorbed(network: nn.Module) -> nn.Module:
    """A copy whose batch norms subtract 0 and divide by 1; those without scale and shift stay as they are.

    >>> norm, x = nn.BatchNorm2d(3).double(), torch.randn(9, 3, 2, 2, dtype=torch.float64)
    >>> still = (norm(x), norm.eval())[1]
    >>> bool((absorbed(still)(x) - still(x)).abs().max() < 1e-12)
    True
    """
    network = copy.deepcopy(network)
    with torch.no_grad():
        for norm in network.modules():
            if isinstance(norm, _BatchNorm) and norm.affine and norm.running_mean is not None:
                mean, var = norm.running_mean.double(), norm.running_var.double()  # type: ignore[union-attr]
                scale = norm.weight.double() / (var + norm.eps).sqrt()
                norm.bias.copy_(norm.bias.double() - mean * scale)
                norm.weight.copy_(scale)
                norm.running_mean.zero_()
                norm.running_var.fill_(1 - norm.eps)  # type: ignore[union-attr]
    return network


def actions(objective: Objective, group: FiniteGroup, g: Any, x: Tensor, draws: int) -> Actions:
    """T_g, Q and its null on the weight vectors of an objective.

    Args:
        objective: of a `canonical` network. x: two or more images (B, 3, n, n). draws: random P.

    Raises:
        Unsupported: the architecture does not have f(g x; T_g theta) = f(x; theta); T_g is no permutation of weights; no
            hidden channels are found; some weights are frozen.
    """
    network = objective.module
    frozen = next((name for name, p in network.named_parameters() if not p.requires_grad), None)
    if frozen is not None:
        raise Unsupported(f"the group moves all weights together, and '{frozen}' requires no gradient")
    check_law(network, group, g, x)

    def reordering(act: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Reordering:
        places = torch.arange(objective.size, dtype=torch.float64, device=objective.device)
        moved = act(objective.named(places))
        index = objective.flat(moved[name] for name in objective.names).round().long()
        if not torch.equal(index.sort().values, places.long()):
            raise Unsupported(f"group '{group.name}' does not permute weights: the colours' standard deviations differ")
        return Reordering(index)

    def move(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return act_on_weights(network, group, g, weights)

    def ordered(permutation: Permutation) -> Reordering:
        return reordering(lambda weights: permute(move(weights), permutation))

    spaces = find_spaces(network, x)
    own = objective.named(objective.theta)
    return Actions(
        reordering(move),
        ordered(spaces.match(own, move(own))),
        [ordered(spaces.random(seed)) for seed in range(draws)],
    )


def check_law(network: nn.Module, group: FiniteGroup, g: Any, x: Tensor) -> None:
    """Refuse an architecture whose grid does not have the group's symmetry.

    Raises:
        Unsupported: f(g x; T_g theta) is not f(x; theta), in float64, for weights in general position.
    """
    try:
        error = law_error(general_position(network, x), group, g, x.double())
    except Misfit as misfit:
        raise Unsupported(str(misfit)) from None
    if not error <= LAW:
        raise Unsupported(
            f"no T_g with f(gx; T_g θ) = f(x; θ) is known at {x.shape[-1]} px: the logits change by {error:.2g} of their size"
        )
