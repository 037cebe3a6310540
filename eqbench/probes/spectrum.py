"""The spectrum of the loss Hessian, or of the Gauss-Newton matrix where images have no labels: ends, sums, density."""

import math

import torch

from eqbench.curvature.density import Estimate, Rule, combined, rules, spectral_sum
from eqbench.curvature.gauss_newton import GaussNewton
from eqbench.curvature.guard import guard
from eqbench.curvature.hessian import Hessian
from eqbench.curvature.lanczos import Eigenpairs, extreme_eigenpairs
from eqbench.curvature.objective import Objective
from eqbench.curvature.trace import quadratic_trace
from eqbench.errors import Failed
from eqbench.groups import Group
from eqbench.probes.base import Finding, Subject
from eqbench.probes.landscape.objectives import objective_of
from eqbench.probes.landscape.spectrum_gradient import gradient_numbers, tempered_maximum
from eqbench.results import Measure
from eqbench.schema import Spectrum

HALVES_TOLERANCE = 1e-2  # relative residual of what is compared with itself: eigenvalues are then good to its square


def run(subject: Subject, group: Group | None, placebo: Group | None, conf: Spectrum) -> Finding:
    """Measure one network's curvature, which has no group.

    Raises:
        Unsupported: an operation without the derivatives that are needed.
        Failed: the loss is not finite, or the guard found the derivatives wrong.
    """
    labelled = subject.labels is not None
    objective = objective_of(subject, conf.micro_batch)
    guard(objective, second=labelled)
    loss = objective.value()
    if not math.isfinite(loss):
        raise Failed(f"the loss is {loss}")
    operator = Hessian(objective) if labelled else GaussNewton(objective)
    pairs = extreme_eigenpairs(
        operator,
        conf.top,
        smallest=1 if labelled else 0,
        magnitude=conf.top if labelled else 0,
        tolerance=conf.tolerance,
        max_products=conf.max_products,
    )
    found = rules(operator, pairs.vectors, conf.density_probes, conf.density_steps)
    rest = rules(operator, pairs.vectors, conf.trace_products - conf.density_probes, 1, seed=1)
    halves = _halves(objective, pairs, labelled, min(20, conf.max_products))
    metrics = {
        "lambda_max": _ritz(pairs, 0, objective.images, conf),
        "lambda_max_sampling": _sampling(halves, pairs),
        **_sums(pairs, found, rest),
    }
    curves = {
        "eigenvalues": pairs.values[: conf.top].tolist(),
        "residuals": pairs.residuals.tolist(),
        "halves": [float(own.values[0]) for own in halves],
        **_density(pairs, found, objective.size),
    }
    hvps = operator.products + math.ceil(sum(own.products for own in halves) / 2)  # a half's product is half of one
    finding = Finding(metrics, curves, hvps=hvps)
    if not isinstance(operator, Hessian):
        return _renamed(finding)
    _add_labelled(finding, operator, pairs, found, conf)
    finding.metrics["loss"] = Measure(loss, n=objective.images, null=math.log(_classes(objective)))
    return finding


def _add_labelled(finding: Finding, hessian: Hessian, pairs: Eigenpairs, found: list[Rule], conf: Spectrum) -> None:
    """Add what only a loss with labels has."""
    objective, forms, before = hessian.objective, GaussNewton(hessian.objective), hessian.products
    fisher = quadratic_trace(forms.quadratic, pairs.vectors[:, pairs.values > 0], conf.trace_products)
    tempered, products = tempered_maximum(objective, pairs.vectors[:, 0])
    finding.metrics |= {
        "lambda_min": _ritz(pairs, -1, objective.images, conf),
        "lambda_max_tempered": tempered,
        "ggn_trace": _measure(fisher, conf.trace_products),
        "negative_mass": _measure(_negative_mass(pairs, found), conf.density_probes),
        "stable_step": _stable_step(finding.metrics["lambda_max"]),
        **gradient_numbers(objective, hessian, pairs, _classes(objective), conf.top),
    }
    magnitudes = pairs.values[pairs.values.abs().argsort(descending=True)[: conf.top]]
    finding.curves |= {"smallest": pairs.values[-1:].tolist(), "by_magnitude": magnitudes.tolist()}
    finding.curves["product"] = [hessian.mode]
    finding.hvps += hessian.products - before + products
    finding.jvps += forms.quadratics * objective.images


def _renamed(finding: Finding) -> Finding:
    """The same under names that say Gauss-Newton."""
    finding.metrics = {f"ggn_{name}": measure for name, measure in finding.metrics.items()}
    finding.curves = {f"ggn_{name}": curve for name, curve in finding.curves.items()}
    return finding


def _ritz(pairs: Eigenpairs, i: int, images: int, conf: Spectrum) -> Measure:
    """An eigenvalue lies within the residual's norm of its Rayleigh quotient (symmetric H)."""
    value, residual = float(pairs.values[i]), float(pairs.residuals[i])
    scale = max(abs(value), 0.01 * float(pairs.values.abs().max()))
    late = f"residual {residual / (scale or 1):.1g} after {conf.max_products} products, not {conf.tolerance:g}"
    converged = residual <= conf.tolerance * scale
    return Measure(value, value - residual, value + residual, images, reason=None if converged else late)


def _sums(pairs: Eigenpairs, found: list[Rule], rest: list[Rule]) -> dict[str, Measure]:
    """What is a sum over the whole spectrum: from all probes where two moments suffice, from the density's beyond that."""
    every = [*found, *rest]
    theta = pairs.values.double()
    # Ritz vectors leave residuals r: |H|^2 = sum theta^2 + 2 sum r^2 + |rest|^2.
    known = torch.stack([theta.sum(), theta.square().sum() + 2 * pairs.residuals.double().square().sum()])
    samples = torch.tensor([[rule.mass * float(rule.weights @ rule.nodes), rule.square] for rule in every]).double()
    sharpest = float(theta.abs().max())
    fourth = spectral_sum(
        theta, found, torch.square, lambda nodes: nodes**4, combine=lambda sums: sums[0] ** 2 / sums[1]
    )
    return {
        "trace": _measure(combined(known[:1], samples[:, :1]), len(every)),
        "frobenius_norm": _measure(combined(known[1:], samples[:, 1:], lambda sums: sums[0].sqrt()), len(every)),
        "stable_rank": _measure(combined(known[1:] / sharpest**2, samples[:, 1:] / sharpest**2), len(every)),
        "participation_rank": _measure(fourth, len(found)),
    }


def _negative_mass(pairs: Eigenpairs, found: list[Rule]) -> Estimate:
    return spectral_sum(
        pairs.values,
        found,
        lambda nodes: nodes.clamp(max=0).square(),
        torch.square,
        combine=lambda sums: sums[0] / sums[1],
    )


def _density(pairs: Eigenpairs, found: list[Rule], size: int) -> dict[str, list[float]]:
    """The spectral density as atoms: nodes, and weights that sum to one."""
    weights = [torch.full((len(pairs.values),), 1 / size, dtype=torch.float64)]
    weights += [rule.mass * rule.weights / (size * len(found)) for rule in found]
    nodes, shares = torch.cat([pairs.values, *(rule.nodes for rule in found)]), torch.cat(weights)
    order = nodes.argsort()
    return {"density_nodes": nodes[order].tolist(), "density_weights": (shares / shares.sum())[order].tolist()}


def _halves(objective: Objective, pairs: Eigenpairs, labelled: bool, max_products: int) -> list[Eigenpairs]:
    """The largest eigenpair on either half of the images, from the whole's; none of fewer than four images."""
    if objective.images < 4:
        return []
    return [
        extreme_eigenpairs(
            Hessian(half) if labelled else GaussNewton(half),
            1,
            smallest=0,
            tolerance=HALVES_TOLERANCE,
            max_products=max_products,
            start=pairs.vectors[:, 0],
            seed=1,
        )
        for half in objective.parts(2)
    ]


def _sampling(halves: list[Eigenpairs], pairs: Eigenpairs) -> Measure:
    """Half the difference between the halves, relative to the whole; the interval is its numerical error."""
    if not halves:
        return Measure(None, reason="two halves need at least 4 images")
    whole, (a, b) = float(pairs.values[0]), halves
    if whole <= 0:
        return Measure(None, reason="the largest eigenvalue is not positive")
    half = abs(float(a.values[0] - b.values[0])) / 2 / whole
    error = float(a.residuals[0] + b.residuals[0]) / 2 / whole
    return Measure(half, max(half - error, 0.0), half + error, 2)


def _stable_step(largest: Measure) -> Measure:
    """2 / lambda_max, with the ends of its interval."""
    value, lo, hi = largest.value, largest.lo, largest.hi
    if value is None or lo is None or hi is None or lo <= 0:
        return Measure(None, reason="the largest eigenvalue is not positive: no step is unstable along it")
    return Measure(2 / value, 2 / hi, 2 / lo, largest.n, reason=largest.reason)


def _measure(estimate: Estimate, probes: int) -> Measure:
    return Measure(estimate.value, estimate.lo, estimate.hi, probes)


def _classes(objective: Objective) -> int:
    with torch.no_grad():
        return objective.logits(objective.batches[0][0][:2]).shape[1]
