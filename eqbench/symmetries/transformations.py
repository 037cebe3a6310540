"""A symmetry as a curve of weights, its derivatives, and the test of a finite step on the logits."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from eqbench.curvature.objective import Objective

Weights = dict[str, Tensor]
Curve = Callable[[Weights, Tensor], Weights]  # (theta by name, t) -> the weights that differ, at T_t theta


class Instance(Protocol):
    """All members of a family at one place: T_t(c) for coefficients c of the shape of `unit`, linear K(theta; c) = A_c theta.

    With `unit`, A is symmetric, so that its charge is theta'A theta / 2: what is written less what is read.
    """

    @property
    def unit(self) -> Tensor: ...

    def curve(self, c: Tensor, /) -> "Symmetry": ...

    def direction(self, theta: Weights, c: Tensor, /) -> Weights:
        """K = d/dt T_t(c) theta at t = 0, where it is not zero: linear in theta, and in c."""
        ...


TOLERANCE = 1e-9  # of the logits' relative change in float64 by a finite step


@dataclass(eq=False)
class Symmetry:
    """One instance of a family: a curve t -> T_t theta that leaves the network's function alone, with T_0 the identity.

    Attributes:
        family: its key in `metrics.symmetries.FAMILIES`. name: of the module where it acts.
        names: the parameters that it moves.
        null: dimensions of the exact null space of the Hessian that instances of this kind span; 0 if none is exact.
        shift: the logits change by one number for all classes.
        origin, c: of which this is the element with these coefficients, where K is linear in theta.
    """

    family: str
    name: str
    curve: Curve
    names: tuple[str, ...]
    null: int = 0
    shift: bool = False
    origin: Instance | None = None
    c: Tensor | None = None


@dataclass
class Verdict:
    """What the finite steps told: instances confirmed, and (instance, relative change of the logits) refuted."""

    confirmed: list[Symmetry] = field(default_factory=list)
    refuted: list[tuple[Symmetry, float]] = field(default_factory=list)


def compose(symmetries: Iterable[Symmetry]) -> Curve:
    """One after the other, at the same t: its generator is the sum of theirs."""
    symmetries = list(symmetries)

    def curve(theta: Weights, t: Tensor) -> Weights:
        moved: Weights = {}
        for one in symmetries:
            moved |= one.curve(theta | moved, t)
        return moved

    return curve


def generator(curve: Curve, theta: Weights, gradient: Weights) -> tuple[Weights, Weights]:
    """K = d/dt T_t theta at t = 0, and J_K'g with J_K = dK/dtheta, by name, where they are not zero.

    Both are derivatives of one number: with s(theta, g) = d/dt <T_t theta, g>, K = ds/dg and J_K'g = ds/dtheta.

    >>> theta, g = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 5.0])}
    >>> generator(lambda theta, t: {"w": theta["w"] * torch.exp(2 * t)}, theta, g)
    ({'w': tensor([2., 4.])}, {'w': tensor([ 6., 10.])})
    """
    with torch.enable_grad():
        point = {name: w.detach().clone().requires_grad_() for name, w in theta.items()}
        t = torch.zeros(
            (), dtype=next(iter(theta.values())).dtype, device=next(iter(theta.values())).device
        ).requires_grad_()
        moved = curve(point, t)
        along = {name: gradient[name].detach().clone().requires_grad_() for name in moved}
        pairing = sum((w * along[name]).sum() for name, w in moved.items())
        assert isinstance(pairing, Tensor)
        (rate,) = torch.autograd.grad(pairing, t, create_graph=True)
        k = torch.autograd.grad(rate, list(along.values()), retain_graph=True, materialize_grads=True)
        if not rate.requires_grad:
            return dict(zip(along, k, strict=True)), {}
        turned = torch.autograd.grad(rate, list(point.values()), allow_unused=True)
    jacobian = {name: piece for name, piece in zip(point, turned, strict=True) if piece is not None}
    return dict(zip(along, k, strict=True)), jacobian


def change(objective: Objective, symmetries: Sequence[Symmetry]) -> float:
    """|f(T_1 theta) - f(theta)| / |f(theta)| over the objective's images, root mean squares, means over classes removed."""
    return _change(objective, symmetries, _logits(objective, {}))


@torch.no_grad()
def _logits(objective: Objective, moved: Weights) -> Tensor:
    """The logits with these weights in place of its own, over all images (N, classes)."""
    theta = dict(objective.module.named_parameters())
    return torch.cat([objective.logits(x, theta | moved) for x, _ in objective.batches])


@torch.no_grad()
def _change(objective: Objective, symmetries: Sequence[Symmetry], before: Tensor) -> float:
    theta = {name: p.detach() for name, p in objective.module.named_parameters()}
    one = torch.ones((), dtype=objective.dtype, device=objective.device)
    after = _logits(objective, compose(symmetries)(theta, one))
    if any(symmetry.shift for symmetry in symmetries):
        before, after = (y - y.mean(1, keepdim=True) for y in (before, after))
    return float((after - before).norm() / before.norm().clamp(min=1e-150))


def confirm(objective: Objective, proposed: Sequence[Symmetry]) -> Verdict:
    """Which proposals leave the logits alone: all at once, and by halves where the whole does not.

    Args:
        objective: in float64, beside the weights of interest rather than at them (`beside`): what is zero there, as the
            last factor of a residual branch often is at initialisation, would hide a change.
    """
    verdict, still = Verdict(), _logits(objective, {})

    def settle(some: Sequence[Symmetry]) -> None:
        found = _change(objective, some, still)
        if found <= TOLERANCE:
            verdict.confirmed.extend(some)
        elif len(some) == 1:
            verdict.refuted.append((some[0], found))
        else:
            settle(some[: len(some) // 2])
            settle(some[len(some) // 2 :])

    for family in dict.fromkeys(one.family for one in proposed):
        settle([one for one in proposed if one.family == family])
    return verdict


@torch.no_grad()
def beside(objective: Objective, step: float = 3e-2, seed: int = 0) -> Objective:
    """A float64 copy with weights moved by noise, |noise| = step (|w| + step) a parameter, root mean squares."""
    exact = objective.double()
    source = torch.Generator().manual_seed(seed)
    for p in exact.module.parameters():
        noise = torch.randn(p.shape, generator=source, dtype=torch.float64).to(p.device)
        p.add_(step * noise * (p.square().mean().sqrt() + step))
    return exact
