"""The trace of a symmetric operator by Hutchinson's estimator, deflated by eigenvectors that are already known."""

from collections.abc import Callable

import torch
from torch import Tensor

from eqbench.curvature.density import Estimate, combined, orthonormal, random_signs, rules, spectral_sum
from eqbench.curvature.lanczos import Operator, orthogonalised


def deflated_trace(operator: Operator, values: Tensor, vectors: Tensor, products: int, seed: int = 0) -> Estimate:
    """The trace, sum_i q_i'Hq_i + E v'(I - QQ')H(I - QQ')v with Rademacher v: Q's part is exact, the rest estimated.

    Hutchinson 1990; deflation as in Hutch++ (Meyer, Musco, Musco & Woodruff 2021, SOSA), with Ritz vectors for Q, so that
    every probe is an unbiased sample of the rest and the standard error s / sqrt(products) is honest. How many products is
    fixed beforehand: stopping when the estimate looks settled would bias both.

    Args:
        operator: symmetric (size, size).
        values: q_i'Hq_i (k,). vectors: orthonormal columns q_i (size, k).
        products: probes, one product each, at least 2.

    >>> a = torch.randn(300, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(1)); a = a @ a.T
    >>> class Matrix:
    ...     size, dtype, device = 300, torch.float64, torch.device("cpu")
    ...     def __matmul__(self, v):
    ...         return a @ v
    >>> theta, q = torch.linalg.eigh(a)
    >>> estimate = deflated_trace(Matrix(), theta[-200:], q[:, -200:], 40)
    >>> abs(estimate.value / float(a.trace()) - 1) < 0.005
    True
    """
    return spectral_sum(values, rules(operator, vectors, products, 1, seed), lambda nodes: nodes)


def quadratic_trace(form: Callable[[Tensor], float], vectors: Tensor, probes: int, seed: int = 0) -> Estimate:
    """`deflated_trace` of a matrix A known by v -> v'Av alone, deflated by any directions (size, k): k + probes forms."""
    generator, known = torch.Generator().manual_seed(seed), orthonormal(vectors)
    exact = torch.tensor([sum(form(q) for q in known)], dtype=torch.float64)
    samples = [[form(random_signs(known, generator))] for _ in range(probes)]
    return combined(exact, torch.tensor(samples, dtype=torch.float64))


def krylov_trace(operator: Operator, products: int, probes: int, seed: int = 0) -> Estimate:
    """The trace from so many products in all: exact on a Lanczos basis V, tr V'HV, and Hutchinson's for what is left.

    Where no eigenvectors are known yet: V holds the outliers long before its Ritz pairs have converged, and the estimate
    is unbiased for any V that does not depend on the probes.

    Args:
        products: of which `probes`, at least 2, are spent on the rest.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = min(products - probes, operator.size)
    basis = torch.empty(steps, operator.size, dtype=operator.dtype, device=operator.device)
    w, inside = torch.randn(operator.size, generator=generator).to(basis), 0.0
    for j in range(steps):
        w = orthogonalised(w, basis[:j])
        basis[j] = w / w.norm()
        w = operator @ basis[j]
        inside += float(w.double() @ basis[j].double())
    rest = rules(operator, basis.T, probes, 1, seed)
    samples = [[rule.mass * float(rule.weights @ rule.nodes)] for rule in rest]
    return combined(torch.tensor([inside], dtype=torch.float64), torch.tensor(samples, dtype=torch.float64))
