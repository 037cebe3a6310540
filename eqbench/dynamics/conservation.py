"""What the symmetries of a loss say of one step of training: no gradient along them, and how their charges change."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from eqbench.curvature.objective import Objective
from eqbench.metrics.symmetries import CONTROL, FAMILIES
from eqbench.symmetries import dataflow
from eqbench.symmetries.attention import Pair
from eqbench.symmetries.balancing import imbalance
from eqbench.symmetries.families import NULL, confirm_but_for_eps, control, propose
from eqbench.symmetries.rescalings import Rescaling
from eqbench.symmetries.transformations import TOLERANCE, Symmetry, Weights, beside, change, generator

CONTROLS = 16  # of its instances, at most, spread over the depth


@dataclass
class Step:
    """One step of an optimiser, by name and in float64: from theta, with this gradient, by `change`.

    Attributes:
        decay: Lambda theta, each parameter times its own weight decay. lr: the learning rate.
    """

    theta: Weights
    gradient: Weights
    change: Weights
    decay: Weights
    lr: float

    @cached_property
    def gradient_norm(self) -> float:
        return norm(self.gradient)

    @cached_property
    def change_norm(self) -> float:
        return norm(self.change)


class Conservation:
    """The symmetries of a network's loss in training mode, and what they say of its steps.

    For a symmetry with generator K, g.K = 0. If K is linear, K = A theta with A symmetric, it has the charge
    Q = theta'A theta / 2, and if it is constant Q = K.theta. A step theta + Delta changes it by exactly
    K.Delta + Delta'A Delta / 2 (A = 0 where K is constant). For gradient descent with coupled weight decay, Delta =
    -eta (g + Lambda theta), the first term is -eta K.Lambda theta alone: gradient flow without decay conserves Q, and

        Delta Q = -eta theta'A Lambda theta + eta^2 / 2 (g + Lambda theta)'A (g + Lambda theta),

    of which the first part is -2 eta lambda Q where all parameters decay alike. Momentum and adaptive optimisers add what
    they make of g.K = 0: the remainder K.(Delta + eta Lambda theta) (Kunin et al. 2021, ICLR; Tanaka & Kunin 2021, NeurIPS).

    Attributes:
        families: those confirmed, each with its instances. controls: what is no symmetry.
    """

    def __init__(self, objective: Objective) -> None:
        """Args:
        objective: the loss in training mode, on a few images: transformations are confirmed by finite steps in float64.
        """
        flow = dataflow.trace(objective.module, objective.batches[0][0])
        trained = set(objective.names)
        proposed = [one for one in propose(objective.module, flow) if trained.issuperset(one.names)]
        near = beside(objective)
        confirmed = confirm_but_for_eps(near, proposed).confirmed
        by_family = {family: [one for one in confirmed if one.family == family] for family in FAMILIES}
        self.families = {family: found for family, found in by_family.items() if found}
        candidates = [one for one in control(flow, proposed) if trained.issuperset(one.names)]
        candidates = candidates[:: -(-len(candidates) // CONTROLS) or 1]
        self.controls = [one for one in candidates if change(near, [one]) > TOLERANCE]

    def of(self, step: Step) -> dict[str, dict[str, float | None]]:
        """The numbers of each family and of the control: see `_family`."""
        every = self.families | ({CONTROL: self.controls} if self.controls else {})
        return {family: _family(family, instances, step) for family, instances in every.items()}


def norm(pieces: Weights) -> float:
    """|v| of a vector by name."""
    return sum(float(piece.square().sum()) for piece in pieces.values()) ** 0.5


def inner(some: Weights, others: Weights) -> float:
    """u.v, over the names that u has."""
    return sum(float((piece * others[name]).sum()) for name, piece in some.items())


def _family(family: str, instances: list[Symmetry], step: Step) -> dict[str, float | None]:
    """The root mean square over instances of |g.K| / (|g||K|), and the sums over them of the terms of Delta Q.

    Keys: `identity`; of families with charges `charge` Q, `change`, its parts `decay`, `square` and `remainder`, and
    `residual`, the root mean square of |remainder| / (|K||Delta|), None of a step that changes nothing; `imbalance` of what is written and read, and
    `decay_imbalance`, the same weighted by each parameter's decay, which decay alone would drive to 0.
    """
    cosines, residuals = [], []
    terms = dict.fromkeys(("charge", "change", "decay", "square", "remainder"), 0.0)
    for one in instances:
        k = direction(one, step.theta, step.gradient)
        cosines.append(inner(k, step.gradient) / max(norm(k) * step.gradient_norm, 1e-300))
        if family == CONTROL or (one.origin is None and family not in NULL):
            continue
        drift: Weights = {}
        if one.origin is not None:
            k, drift = (one.origin.direction(there, one.origin.unit) for there in (step.theta, step.change))
            terms["charge"] += inner(k, step.theta) / 2
        first, square = inner(k, step.change), inner(drift, step.change) / 2
        decayed = -step.lr * inner(k, step.decay)
        parts = {"change": first + square, "decay": decayed, "square": square, "remainder": first - decayed}
        terms = {key: total + parts.get(key, 0.0) for key, total in terms.items()}
        residuals.append((first - decayed) / max(norm(k) * step.change_norm, 1e-300))
    found: dict[str, float | None] = {"identity": _rms(cosines)}
    if residuals:
        found |= terms | {"residual": _rms(residuals) if step.change_norm else None}
        if family in NULL:
            found["charge"] = None  # along random directions: of no meaning but that it is conserved
    pairs = [one.origin for one in instances if isinstance(one.origin, Rescaling | Pair) and family != CONTROL]
    if pairs:
        found["imbalance"] = _imbalance(step.theta, pairs)
        # sqrt(Lambda theta . theta): its squares are the parameters' shares of the decay.
        roots = {name: (step.decay[name] * w).sqrt() * torch.sign(w) for name, w in step.theta.items()}
        found["decay_imbalance"] = _imbalance(roots, pairs) if any(bool(w.any()) for w in roots.values()) else None
    return found


def direction(one: Symmetry, theta: Weights, gradient: Weights) -> Weights:
    """K of an instance at theta."""
    if one.origin is not None and one.c is not None:
        return one.origin.direction(theta, one.c)
    return generator(one.curve, *({name: w[name] for name in dict.fromkeys(one.names)} for w in (theta, gradient)))[0]


def _imbalance(theta: Weights, pairs: Iterable[Rescaling | Pair]) -> float:
    on_cpu = {name: w.cpu() for name, w in theta.items()}
    return float(torch.cat([imbalance(on_cpu, one) for one in pairs]).mean())


def _rms(values: list[float]) -> float:
    return (sum(value * value for value in values) / len(values)) ** 0.5


def doubles(pieces: Iterable[tuple[str, Tensor]]) -> Weights:
    """By name, detached, in float64."""
    return {name: piece.detach().double() for name, piece in pieces}
