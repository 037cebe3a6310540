"""Residuals of the first- and second-order identities that a symmetry of the weights forces on gradient and Hessian."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from eqbench.curvature.hessian import Hessian
from eqbench.curvature.objective import Objective
from eqbench.symmetries.transformations import Symmetry, generator

FAINT = 1e-4  # of |Hu|: products below it are measured against it, for the rounding of 1e-16 |H| that they carry


@dataclass
class Along:
    """What was found along the sum of some generators, each of norm one.

    Attributes:
        k, hk: K and HK, (size,). forced: -J_K'g, what HK must be.
        r1: |g.K| / (|g||K|). r2: |HK + J_K'g| / (|HK| + |J_K'g|), for translations |HK| / |Hu| with a random u, |u| = |K|.
    """

    k: Tensor
    hk: Tensor
    forced: Tensor
    r1: float
    r2: float

    @property
    def curvature(self) -> float:
        """K'HK / K'K."""
        return float(self.k.double() @ self.hk.double()) / float(self.k.double().square().sum())


class Point:
    """A loss at its network's weights: gradient and Hessian, on which symmetries are checked.

    For a pure symmetry g.K = 0, and differentiating once more H K = -J_K'g, with K = d/dt T_t theta at 0 and J_K = dK/dtheta
    (in the spirit of Yang & Ziyin 2025, arXiv:2512.21447).

    >>> from torch import nn
    >>> from eqbench.symmetries.families import propose
    >>> from eqbench.symmetries.dataflow import trace
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)).double()
    >>> x = torch.rand(8, 3, 1, 1).double()
    >>> found = propose(net, trace(net, x))
    >>> sorted({one.family for one in found})
    ['S1', 'S8']
    >>> Point(Objective(net, [(x, torch.arange(8) % 2)])).along(found).r2 < 1e-12
    True
    """

    def __init__(self, objective: Objective, seed: int = 0) -> None:
        self.objective, self.seed = objective, seed
        self.hessian = Hessian(objective)

    @cached_property
    def gradient(self) -> Tensor:
        return self.objective.gradient()[1]

    @cached_property
    def scale(self) -> float:
        """|Hu| for a random unit u in the full space."""
        u = torch.randn(self.objective.size, generator=torch.Generator().manual_seed(self.seed))
        return float((self.hessian @ (u / u.norm()).to(self.gradient)).double().norm())

    def along(self, symmetries: Sequence[Symmetry]) -> Along:
        """The residuals along the sum of the generators of some instances: one Hessian product."""
        k, jacobian, moves = self._direction(symmetries)
        hk = self.hessian @ k
        length = float(k.double().norm())
        r1 = abs(float(self.gradient.double() @ k.double())) / max(
            float(self.gradient.double().norm()) * length, 1e-300
        )
        error = float((hk.double() + jacobian.double()).norm())
        size = float(hk.double().norm()) + float(jacobian.double().norm())
        bottom = max(size, FAINT * self.scale * length) if moves else self.scale * length
        return Along(k, hk, -jacobian, r1, error / max(bottom, 1e-300))

    def _direction(self, symmetries: Sequence[Symmetry]) -> tuple[Tensor, Tensor, bool]:
        """K and J_K'g, (size,), summed over instances scaled to |K| = 1; and whether any K depends on the weights."""
        theta, gradient = self.objective.named(self.objective.theta), self.objective.named(self.gradient)
        k, jacobian = torch.zeros_like(self.gradient), torch.zeros_like(self.gradient)
        into, moves = (self.objective.named(k), self.objective.named(jacobian)), False
        for one in symmetries:
            names = dict.fromkeys(one.names)
            pieces = generator(one.curve, {n: theta[n] for n in names}, {n: gradient[n] for n in names})
            length = sum(float(piece.double().square().sum()) for piece in pieces[0].values()) ** 0.5
            for target, own in zip(into, pieces, strict=True):
                for name, piece in own.items():
                    target[name] += piece / max(length, 1e-300)
            moves |= bool(pieces[1])
        return k, jacobian, moves

    def alike(self, k: Tensor) -> Tensor:
        """A random direction on the support of K, of the same norm in every parameter."""
        source = torch.Generator().manual_seed(self.seed + 1)
        u = torch.zeros_like(k)
        for own, like in zip(self.objective.split(u), self.objective.split(k), strict=True):
            length = float(like.norm())
            if length:
                own.copy_(torch.randn(own.shape, generator=source).to(own) * (like != 0))
                own.mul_(length / own.norm().clamp(min=1e-30))
        return u

    def bounds(self, along: Along) -> tuple[float, float]:
        """Bounds lambda_min <= lo, hi <= lambda_max by one more product: Ritz values on span{K, J_K'g} (Cauchy).

        Where the identities hold, with r = |J_K'g| / |K| and h the curvature along J_K'g, and K'HK = 0, they are
        h/2 -+ sqrt(h^2/4 + r^2): of both signs, however the network was trained.
        """
        k = along.k.double() / along.k.double().norm()
        w = along.forced.double()
        w = w - (k @ w) * k
        if not float(w.norm()) > 0:
            return along.curvature, along.curvature
        w = w / w.norm()
        hk, hw = along.hk.double() / along.k.double().norm(), (self.hessian @ w.to(along.k)).double()
        cross = float(w @ hk)
        ritz = torch.linalg.eigvalsh(
            torch.tensor([[float(k @ hk), cross], [cross, float(w @ hw)]], dtype=torch.float64)
        )
        return float(ritz[0]), float(ritz[1])


def worst(point: Point, symmetries: Sequence[Symmetry]) -> tuple[Symmetry, Along]:
    """The instance with the largest residual, by halves: 2 log2(n) products."""
    some = list(symmetries)
    while len(some) > 1:
        halves = some[: len(some) // 2], some[len(some) // 2 :]
        residuals = [point.along(half).r2 for half in halves]
        some = list(halves[int(residuals[1] > residuals[0])])
    return some[0], point.along(some)
