"""Invariance to second order: how far the loss of transformed images has other gradients and curvatures."""

import math

import numpy as np
import torch
from torch import Tensor

from eqbench.curvature.hessian import Hessian
from eqbench.curvature.lanczos import Eigenpairs, extreme_eigenpairs
from eqbench.curvature.objective import Objective
from eqbench.curvature.trace import quadratic_trace
from eqbench.errors import Failed
from eqbench.results import Measure
from eqbench.schema import GroupLandscape
from eqbench.stats import Array, jackknife


def norm_ratio(a: Tensor, b: Tensor, weights: Array, null: float | None = None) -> Measure:
    """|sum_k w_k a_k| / |sum_k w_k b_k| of vectors a, b (k, size); its interval by the jackknife over k (Student's t).

    A bootstrap would add the noise of the k parts to both norms a second time.

    >>> b = torch.randn(16, 500, generator=torch.Generator().manual_seed(0)) + 2
    >>> found = norm_ratio(0.5 * b, b, np.ones(16))
    >>> abs(found.value - 0.5) < 1e-6, found.hi - found.lo < 1e-5
    (True, True)
    """
    over, under = ((z @ z.T).double().cpu().numpy() for z in (a, b))
    k = len(a)
    w = np.vstack([np.ones(k), 1 - np.eye(k)]) * weights
    value, *without = ((w @ over * w).sum(1).clip(0) / (w @ under * w).sum(1)) ** 0.5
    middle, lo, hi = jackknife(float(value), np.array(without))
    return Measure(middle, max(lo, 0.0), hi, k, null=null)


def noise_ratio(vectors: Tensor) -> float:
    """|g(X') - g(X)| / |g(X)| expected of two sets of other images, from the spread of the gradients (k, size) of parts."""
    mean = vectors.double().mean(0)
    spread = (vectors.double() - mean).square().sum() / (len(vectors) - 1) / len(vectors)
    return math.sqrt(2 * float(spread)) / float(mean.norm())


def curvature_gaps(still: Objective, moved: Objective, conf: GroupLandscape) -> tuple[dict[str, Measure], float, int]:
    """|lambda_1(gX) - lambda_1(X)| / |lambda_1(X)| and the same of the trace.

    The interval of the first is that of the Ritz residuals; of the second, Student's t over random probes, each of them
    applied to both Hessians, beside the top eigenvectors, which are exact.

    Returns:
        The two measures, the mean of both traces, and how many Hessian products were made.
    """
    hessians = [Hessian(still), Hessian(moved)]
    tops: list[Eigenpairs] = []
    for hessian in hessians:
        start = tops[0].vectors[:, 0] if tops else None
        tops.append(
            extreme_eigenpairs(
                hessian, 1, smallest=0, tolerance=conf.tolerance, max_products=conf.max_products, start=start
            )
        )
    if not float(tops[0].values[0]):
        raise Failed("the Hessian is exactly zero in this dtype: the logits are saturated")
    (first, second), errors = (float(top.values[0]) for top in tops), [float(top.residuals[0]) for top in tops]
    gap, error = abs(second - first) / abs(first), sum(errors) / abs(first)
    reason = None if all(top.converged for top in tops) else f"not converged to {conf.tolerance:g}"

    forms: list[tuple[float, float]] = []

    def difference(v: Tensor) -> float:
        forms.append(tuple(float(v.double() @ (hessian @ v).double()) for hessian in hessians))  # type: ignore[arg-type]
        return forms[-1][1] - forms[-1][0]

    basis = torch.cat([top.vectors for top in tops], 1)
    estimate = quadratic_trace(difference, basis, conf.trace_products)
    exact, rest = forms[: -conf.trace_products], forms[-conf.trace_products :]
    traces = [sum(f[i] for f in exact) + sum(f[i] for f in rest) / len(rest) for i in (0, 1)]
    ends = sorted(abs(x / traces[0]) for x in (estimate.lo, estimate.hi))
    lo = 0.0 if estimate.lo < 0 < estimate.hi else ends[0]
    measures = {
        "lambda_gap": Measure(gap, max(gap - error, 0.0), gap + error, still.images, reason=reason),
        "trace_gap": Measure(abs(estimate.value / traces[0]), lo, ends[1], still.images),
    }
    return measures, sum(traces) / 2, sum(hessian.products for hessian in hessians)
