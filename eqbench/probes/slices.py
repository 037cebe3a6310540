"""The loss along lines, on a plane, along eigenvectors and orbits, and on the way to other weights of the same architecture.

Where images have no labels, the classes are those that the network predicts.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from eqbench.curvature.guard import guard
from eqbench.curvature.hessian import Hessian
from eqbench.curvature.lanczos import extreme_eigenpairs
from eqbench.curvature.objective import Objective
from eqbench.errors import Failed, Unsupported
from eqbench.groups import Group
from eqbench.probes.base import Finding, Subject
from eqbench.probes.landscape.directions import filter_normalised
from eqbench.probes.landscape.gauge_orbits import along_orbits, orbit_rise
from eqbench.probes.landscape.interpolation import OVERFLOW, interpolations
from eqbench.probes.landscape.objectives import objective_of
from eqbench.results import Measure
from eqbench.schema import Slices
from eqbench.stats import Array, mean_interval

CURVED = 1e-5  # nats by which the quadratic part of the loss rises at the step of a second difference


@dataclass
class Line:
    """The loss at th + t d for some t, and the curvature d'Hd at t = 0, where it is known."""

    times: list[float]
    losses: list[float]
    curvature: float | None = None


def run(subject: Subject, group: Group | None, placebo: Group | None, conf: Slices) -> Finding:
    """Measure one network's landscape along chosen directions, which has no group.

    Raises:
        Unsupported: an operation without a second derivative, or labels that the network has no place for.
        Failed: the loss is not finite, or the guard found the derivatives wrong.
    """
    objective = objective_of(subject, conf.micro_batch)
    guard(objective)
    if not np.isfinite(objective.value()):
        raise Failed(f"the loss is {objective.value()}")
    times = np.linspace(-conf.span, conf.span, conf.points)
    directions = [filter_normalised(objective, seed) for seed in range(conf.directions)]
    lines = [line(objective, d, times) for d in directions]
    metrics = {"slice_rise": _rise(objective, lines)}
    curves: dict[str, list[Any]] = {"lines": [_entry(one) for one in lines]}
    if conf.grid:
        curves["surface"] = surface(
            objective, directions[0], directions[1], np.linspace(-conf.span, conf.span, conf.grid)
        )
    hessian = Hessian(objective)
    if conf.eigenvectors:
        eigenlines, ratio = along_eigenvectors(objective, hessian, conf)
        metrics["eigen_slice_ratio"] = ratio
        curves["eigenvectors"] = [_entry(one) for one in eigenlines]
    metrics["orbit_rise"], curves["orbits"] = _orbits(objective)
    found, curves["paths"] = interpolations(subject, objective, conf)
    return Finding(metrics | found, curves, hvps=hessian.products)


def line(objective: Objective, d: Tensor, times: Array, curvature: float | None = None) -> Line:
    """L(th + t d) for each t."""
    theta = objective.theta
    return Line(times.tolist(), [objective.value(theta + t * d) for t in times.tolist()], curvature)


def surface(objective: Objective, d: Tensor, e: Tensor, times: Array) -> list[list[float]]:
    """L(th + s d + t e): a row for each s, a column for each t."""
    theta = objective.theta
    return [[objective.value(theta + s * d + t * e) for t in times.tolist()] for s in times.tolist()]


def along_eigenvectors(objective: Objective, hessian: Hessian, conf: Slices) -> tuple[list[Line], Measure]:
    """Slices along the top eigenvectors q, as far as the quadratic L + lambda t^2 / 2 rises by one nat.

    Returns:
        The slices, and the curvature of the first one at 0 over its eigenvalue: [L(e) + L(-e) - 2 L(0)] / (e^2 lambda) in
        float64, with the Ritz residual as its interval.
    """
    pairs = extreme_eigenpairs(hessian, conf.eigenvectors, smallest=0, tolerance=1e-2, max_products=conf.max_products)
    times = np.linspace(-1, 1, conf.points)
    lines = [
        line(objective, q, times * (2 / max(abs(value), 1e-12)) ** 0.5, value)
        for q, value in zip(pairs.vectors.T, pairs.values.tolist(), strict=True)
    ]
    top, residual = pairs.values[0].item(), pairs.residuals[0].item()
    if not top:
        raise Failed("the Hessian is exactly zero in this dtype: the logits are saturated")
    exact, step = objective.double(), (2 * CURVED / max(abs(top), 1e-12)) ** 0.5
    q = pairs.vectors[:, 0].double()
    bend = sum(exact.value(exact.theta + sign * step * q) for sign in (1, -1)) - 2 * exact.value()
    ratio = bend / step**2 / top
    reason = None if pairs.converged else f"the eigenpair has not converged in {conf.max_products} products"
    width = abs(residual / top)
    return lines, Measure(ratio, ratio - width, ratio + width, objective.images, reason=reason)


def _orbits(objective: Objective) -> tuple[Measure, list[dict[str, Any]]]:
    try:
        found = along_orbits(objective)
    except Unsupported as error:
        return Measure(None, reason=str(error)), []
    return orbit_rise(objective, found), [asdict(one) for one in found]


def _rise(objective: Objective, lines: list[Line]) -> Measure:
    """The rise at both ends, mean over the lines, with Student's interval."""
    middle = objective.value()
    samples = np.array([(one.losses[0] + one.losses[-1]) / 2 - middle for one in lines])
    if not np.isfinite(samples).all():
        return Measure(None, n=objective.images, reason=OVERFLOW)
    return Measure(*mean_interval(samples), objective.images)


def _entry(one: Line) -> dict[str, Any]:
    """What the figure draws."""
    return {key: value for key, value in asdict(one).items() if value is not None}
