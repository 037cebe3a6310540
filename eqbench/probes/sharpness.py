"""Sharpness of the loss at weights whose rescaling symmetries have been balanced: worst case, average case, and kinks.

Rescaling neighbouring layers changes the sharpness of a network and not its function (Dinh et al. 2017), so everything is
measured at the balanced copy; the same at the weights as they are is given as a ratio. Where images have no labels, the
classes are those that the network predicts.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from eqbench.curvature.guard import guard
from eqbench.curvature.objective import Objective
from eqbench.errors import Failed
from eqbench.groups import Group
from eqbench.probes.base import Finding, Subject
from eqbench.probes.landscape.ascent import Ball, Highest, ascend
from eqbench.probes.landscape.kinks import kink_ratios
from eqbench.probes.landscape.losses import image_losses, normalised_cross_entropy
from eqbench.probes.landscape.objectives import objective_of
from eqbench.results import Measure
from eqbench.schema import Sharpness
from eqbench.stats import Array, bootstrap, mean_interval
from eqbench.symmetries import balance

MULTIPLES = {"_half": 0.5, "": 1.0, "_double": 2.0}  # of the radius of each kind
STEPS = {"kink_ratio_small": 1e-4, "kink_ratio_middle": 1e-3, "kink_ratio": 1e-2}  # |ev| / |th|
OVERFLOW = "the loss is not finite within this radius"


@dataclass(frozen=True)
class Kind:
    """Which perturbations d: |d / scale|_p <= radius, scale = |th| entry by entry (adaptive) or 1."""

    adaptive: bool
    p: float


WORST = {
    "sam_sharpness": Kind(False, 2),
    "adaptive_sharpness": Kind(True, 2),
    "adaptive_max_sharpness": Kind(True, math.inf),
}
AVERAGE = "average_sharpness"


@dataclass
class Place:
    """Weights, and how the loss of each image rises around them."""

    objective: Objective
    theta: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.theta = self.objective.theta

    @cached_property
    def losses(self) -> Array:
        return image_losses(self.objective)

    @cached_property
    def start(self) -> tuple[float, Tensor]:
        """L and its gradient at the weights."""
        return self.objective.gradient()

    def rise(self, shift: Tensor) -> Array:
        """l(th + shift) - l(th) of each image, (n,)."""
        return image_losses(self.objective, self.theta + shift) - self.losses

    def noise(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.objective.size, generator=generator).to(self.theta)

    def scale(self, kind: Kind) -> Tensor:
        return self.theta.abs() if kind.adaptive else torch.ones_like(self.theta)

    def worst(self, kind: Kind, radii: list[float], steps: int) -> list[Array]:
        """The rise of each image where APGD, from the gradient's own point of the edge, found the mean loss highest.

        Returns:
            (n,) for each radius, ascending: where a larger ball's search ended lower, the smaller ball's point is taken.
        """
        scale, (level, gradient) = self.scale(kind), self.start

        def function(u: Tensor) -> tuple[float, Tensor]:
            value, slope = self.objective.gradient(self.theta + scale * u)
            return value - level, scale * slope

        first = scale * gradient
        first = first if float(first.abs().max()) > 0 else self.noise(0)
        rises: list[Array] = []
        highest = Highest(0.0, torch.zeros_like(first))
        for radius in radii:
            ball = Ball(kind.p, radius)
            found = ascend(function, ball, ball.edge(ball.steepest(first)), steps)
            highest = highest if found.value < highest.value else found
            known = math.isfinite(found.value)
            rises.append(self.rise(scale * highest.at) if known else np.full(self.objective.images, np.nan))
        return rises

    def chance(self, kind: Kind, radius: float) -> float:
        """The mean rise at a random point of the ball's edge, and opposite to it."""
        ball = Ball(kind.p, radius)
        shift = self.scale(kind) * ball.edge(ball.steepest(self.noise(0)))
        return float((self.rise(shift) + self.rise(-shift)).mean() / 2)

    def average(self, radius: float, pairs: int) -> Array:
        """The rise at th +- radius |th| z, z normal, mean of both signs: (pairs, n)."""
        steps = [radius * self.theta.abs() * self.noise(seed) for seed in range(pairs)]
        return np.stack([(self.rise(step) + self.rise(-step)) / 2 for step in steps])


def run(subject: Subject, group: Group | None, placebo: Group | None, conf: Sharpness) -> Finding:
    """Measure one network's sharpness, which has no group.

    Raises:
        Unsupported: an operation without a derivative, or labels that the network has no place for.
        Failed: the loss is not finite, or the guard found the derivatives wrong.
    """
    plain = objective_of(subject, conf.micro_batch)
    guard(plain)
    loss = normalised_cross_entropy if conf.normalise_logits else plain.loss
    balanced = balance(plain.module, plain.batches[0][0])
    before = Place(Objective(plain.module, plain.batches, loss))
    after = Place(Objective(balanced, plain.batches, loss))
    if not np.isfinite(after.losses).all():
        raise Failed("the loss of an image is not finite")

    metrics: dict[str, Measure] = {}
    for name, kind in WORST.items():
        radius = getattr(conf, name.replace("sharpness", "radius"))
        radii = [radius * multiple for multiple in MULTIPLES.values()]
        rises = after.worst(kind, radii, conf.steps)
        for suffix, radius_of, rise in zip(MULTIPLES, radii, rises, strict=True):
            metrics[name + suffix] = _over_images(subject, conf, rise, null=after.chance(kind, radius_of))
        (unbalanced,) = before.worst(kind, [radius], conf.steps)
        metrics[name.replace("sharpness", "gauge_ratio")] = _over_images(subject, conf, unbalanced, rises[1], null=1.0)

    means = [after.average(conf.average_radius * multiple, conf.directions) for multiple in MULTIPLES.values()]
    for suffix, rise in zip(MULTIPLES, means, strict=True):
        metrics[AVERAGE + suffix] = _over_directions(rise.mean(1), rise.shape[1])
    unbalanced = before.average(conf.average_radius, conf.directions).mean(0)
    metrics["average_gauge_ratio"] = _over_images(subject, conf, unbalanced, means[1].mean(0), null=1.0)

    smooth = Objective(balanced, plain.batches)
    kinks = kink_ratios(smooth, conf.kink_images, conf.kink_directions, list(STEPS.values()))
    return Finding(metrics | dict(zip(STEPS, kinks, strict=True)), hvps=conf.kink_directions)


def _over_images(subject: Subject, conf: Sharpness, rises: Array, over: Array | None = None, *, null: float) -> Measure:
    """The mean rise, or its ratio to the mean of `over`, with its interval over images."""

    def statistic(w: Array) -> Array:
        return w @ rises / (w.sum(1) if over is None else w @ over)

    value, lo, hi = bootstrap(statistic, subject.n, conf.resamples, subject.clusters)
    known = np.isfinite(rises).all() and (over is None or np.isfinite(over).all())
    reason = None if math.isfinite(value) else "the loss does not rise within this radius" if known else OVERFLOW
    return Measure(value, lo, hi, subject.n, null=null, reason=reason)


def _over_directions(samples: Array, images: int) -> Measure:
    """The mean over random directions, with its interval by Student's t."""
    if not np.isfinite(samples).all():
        return Measure(None, n=images, reason=OVERFLOW)
    return Measure(*mean_interval(samples), images)
