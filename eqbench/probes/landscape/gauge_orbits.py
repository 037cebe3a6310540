"""The loss along finite symmetries of the weights, beside random straight lines of the same lengths on the same weights."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eqbench.curvature.objective import Objective
from eqbench.errors import Unsupported
from eqbench.metrics.symmetries import BUT_FOR_EPS, CONTROL
from eqbench.probes.landscape.directions import on_support
from eqbench.probes.landscape.losses import image_losses
from eqbench.results import Measure
from eqbench.symmetries.dataflow import trace
from eqbench.symmetries.families import propose
from eqbench.symmetries.transformations import Symmetry, beside, compose, confirm

POINTS = 7  # of an orbit, t in [-1, 1]


@dataclass
class GaugeOrbit:
    """L(T_t th) for each t, and L(th + |T_t th - th| sign(t) u), u random and of norm 1 on the same entries."""

    family: str
    times: list[float]
    losses: list[float]
    random: list[float]


@torch.no_grad()
def along_orbits(objective: Objective) -> list[GaugeOrbit]:
    """One orbit a family, all its instances at once, each by a random element; those that a finite step in float64 refutes
    are left out, and those that are exact but for the eps of a norm.

    Raises:
        Unsupported: the network's data flow shows no such symmetry.
    """
    families: dict[str, list[Symmetry]] = {}
    for one in _confirmed(objective):
        families.setdefault(one.family, []).append(one)
    if not families:
        raise Unsupported("no exact symmetry of the weights was found")
    theta, times = objective.theta, np.linspace(-1, 1, POINTS).tolist()
    named = objective.named(theta)
    found = []
    for family, instances in families.items():
        curve = compose(instances)
        orbit = [objective.flat((named | curve(named, theta.new_tensor(t))).values()) for t in times]
        u = on_support(orbit[-1] - theta, 0)
        lengths = [float((moved - theta).norm()) * np.sign(t) for moved, t in zip(orbit, times, strict=True)]
        random = [_loss(objective, theta + length * u) for length in lengths]
        found.append(GaugeOrbit(family, times, [_loss(objective, moved) for moved in orbit], random))
    return found


def _loss(objective: Objective, theta: Tensor) -> float:
    """L(theta) from logits in the network's dtype, but in float64 from there on, so that rounding of one loss is not lost."""
    return float(image_losses(objective, theta).mean())


def _confirmed(objective: Objective) -> list[Symmetry]:
    module, (x, _) = objective.module, objective.batches[0]
    proposed = propose(module, trace(copy.deepcopy(module), x[:2]))
    left_out, known = {CONTROL, *BUT_FOR_EPS}, set(objective.names)
    exact = [one for one in proposed if one.family not in left_out and set(one.names) <= known]
    return confirm(beside(objective.first(2)), exact).confirmed


def orbit_rise(objective: Objective, orbits: list[GaugeOrbit]) -> Measure:
    """The largest |L(T_t th) - L(th)|, with that of the random lines as its null."""
    middle = _loss(objective, objective.theta)

    def largest(losses: list[list[float]]) -> float:
        return float(np.abs(np.array(losses) - middle).max())

    rise, null = largest([one.losses for one in orbits]), largest([one.random for one in orbits])
    return Measure(rise, n=objective.images, floor=0.0, null=null)
