"""Extreme eigenvalues and trace of the Hessian of the mean loss, every pair checked, every number with its interval."""

import math

import torch

from eqbench.curvature.guard import guard
from eqbench.curvature.hessian import Hessian
from eqbench.curvature.lanczos import extreme_eigenpairs
from eqbench.curvature.trace import deflated_trace
from eqbench.errors import Failed, Unsupported
from eqbench.groups import Group
from eqbench.probes.base import Finding, Subject
from eqbench.probes.landscape import objective_of
from eqbench.results import Measure
from eqbench.schema import Spectrum


def run(subject: Subject, group: Group | None, placebo: Group | None, conf: Spectrum) -> Finding:
    """Measure one network's curvature, which has no group.

    Raises:
        Unsupported: no labels, or an operation without a second derivative.
        Failed: the loss is not finite, or the guard found the derivatives wrong.
    """
    if subject.labels is None:
        raise Unsupported("the loss Hessian needs labels, and these images have none")
    objective = objective_of(subject, conf.micro_batch)
    guard(objective)
    with torch.no_grad():
        classes = objective.logits(objective.batches[0][0][:2]).shape[1]
    loss = objective.value()
    if not math.isfinite(loss):
        raise Failed(f"the loss is {loss}")
    hessian = Hessian(objective)
    pairs = extreme_eigenpairs(hessian, conf.top, tolerance=conf.tolerance, max_products=conf.max_products)
    trace = deflated_trace(hessian, pairs.values, pairs.vectors, conf.trace_products)

    values, residuals = pairs.values.tolist(), pairs.residuals.tolist()
    reason = None if pairs.converged else f"not converged to {conf.tolerance:g} in {conf.max_products} products"

    def ritz(i: int) -> Measure:
        """An eigenvalue lies within the residual's norm of its Rayleigh quotient (symmetric H)."""
        return Measure(values[i], values[i] - residuals[i], values[i] + residuals[i], objective.images, reason=reason)

    metrics = {
        "loss": Measure(loss, n=objective.images, null=math.log(classes)),
        "lambda_max": ritz(0),
        "lambda_min": ritz(-1),
        "trace": Measure(trace.value, trace.lo, trace.hi, objective.images),
    }
    curves = {"eigenvalues": values[: conf.top], "residuals": residuals, "smallest": values[-1:]}
    return Finding(metrics, curves, hvps=hessian.products)
