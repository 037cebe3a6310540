"""How much curvature the Hessian misses: finite differences of the loss against v'Hv, where networks have kinks."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import stdtrit

from eqbench.curvature.hessian import Hessian
from eqbench.curvature.objective import Objective
from eqbench.results import Measure
from eqbench.stats import Array


def kink_ratios(objective: Objective, images: int, directions: int, steps: Sequence[float]) -> list[Measure]:
    """sum_v k_v(e) / sum_v v'Hv for each step e, k_v(e) = [L(th + ev) + L(th - ev) - 2L(th)] / e^2 in float64.

    v_i = th_i z_i, z normal, |v| = |th|: directions that rescaling channels does not change. A ReLU's kink adds to k on
    average over directions and never to H; a smooth network has 1, up to e^2. The interval is over directions: Student's
    t of k_v - r v'Hv.

    Args:
        objective: its first images are used, in one batch. directions: at least 2. steps: |ev| / |th|.

    >>> x, y = torch.randn(64, 5), torch.randint(3, (64,))
    >>> linear = torch.nn.Linear(5, 3)
    >>> (ratio,) = kink_ratios(Objective(linear, [(x, y)]), 64, 4, [1e-3])
    >>> abs(ratio.value - 1) < 1e-4
    True
    """
    small = objective.first(images)
    exact, hessian = small.double(), Hessian(small)
    theta, generator = exact.theta, torch.Generator().manual_seed(0)
    middle, found, curvature = exact.value(), np.empty((directions, len(steps))), np.empty(directions)
    for j in range(directions):
        v = theta * torch.randn(exact.size, generator=generator, dtype=torch.float64).to(theta.device)
        v *= theta.norm() / v.norm()
        curvature[j] = float(v @ (hessian @ v.to(small.dtype)).double())
        for i, e in enumerate(steps):
            found[j, i] = (exact.value(theta + e * v) + exact.value(theta - e * v) - 2 * middle) / e**2
    return [_ratio(found[:, i], curvature, small.images) for i in range(len(steps))]


def _ratio(found: Array, curvature: Array, images: int) -> Measure:
    m = len(curvature)
    t, mean = float(stdtrit(m - 1, 0.975)) / m**0.5, float(curvature.mean())
    if not (np.isfinite(found).all() and math.isfinite(mean)):
        return Measure(None, n=images, reason="the loss is not finite at one of the steps")
    if abs(mean) <= t * curvature.std(ddof=1):
        return Measure(None, n=images, reason="v'Hv along random directions is not told apart from 0")
    ratio = float(found.mean()) / mean
    half = t * float((found - ratio * curvature).std(ddof=1)) / abs(mean)
    return Measure(ratio, ratio - half, ratio + half, images, floor=1.0)
