"""The spectral density of a symmetric operator by stochastic Lanczos quadrature, beside eigenvectors already known."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eqbench.curvature.lanczos import Operator, orthogonalised
from eqbench.stats import jackknife, student


@dataclass
class Estimate:
    """A value and its 95 % interval by Student's t over random probes."""

    value: float
    lo: float
    hi: float


@dataclass
class Rule:
    """Gauss quadrature of one random vector v: v'f(H)v ~ mass sum_j weights_j f(nodes_j), exact to degree 2m - 1.

    Attributes:
        nodes, weights: (m,), float64 on the CPU; the weights sum to one.
        mass: |v|^2. square: |Hv|^2, exact at any m.
    """

    nodes: Tensor
    weights: Tensor
    mass: float
    square: float


def rules(operator: Operator, vectors: Tensor, probes: int, steps: int, seed: int = 0) -> list[Rule]:
    """Rules of Rademacher vectors projected off known eigenvectors: unbiased samples of the rest of the spectrum.

    m Lanczos steps with full reorthogonalisation give a tridiagonal T; its eigenvalues are the nodes, the squared first
    entries of its eigenvectors the weights (Golub & Welsch 1969; Ubaru, Chen & Saad 2017, SIAM J. Matrix Anal. Appl. 38).

    Args:
        operator: symmetric (size, size). vectors: orthonormal eigenvectors as columns (size, k), k may be 0.
        probes: how many, from consecutive draws of `seed`. steps: m, one product each.

    >>> diagonal = torch.linspace(-1, 3, 500, dtype=torch.float64)
    >>> class Diagonal:
    ...     size, dtype, device = 500, torch.float64, torch.device("cpu")
    ...     def __matmul__(self, v):
    ...         return diagonal * v
    >>> found = rules(Diagonal(), torch.zeros(500, 0, dtype=torch.float64), probes=1, steps=6)[0]
    >>> v = torch.randint(2, (500,), generator=torch.Generator().manual_seed(0)) * 2 - 1
    >>> moments = [(abs(found.mass * (found.weights * found.nodes**q).sum() / (v * diagonal**q * v).sum() - 1) < 1e-12)
    ...            for q in range(12)]
    >>> bool(torch.stack(moments).all())
    True
    """
    generator = torch.Generator().manual_seed(seed)
    known = orthonormal(vectors)
    return [_rule(operator, known, steps, random_signs(known, generator)) for _ in range(probes)]


def orthonormal(vectors: Tensor) -> Tensor:
    """The span of the columns (size, k) as orthonormal rows (k, size), to rounding, whatever the caller's dtype left."""
    return torch.linalg.qr(vectors)[0].T if vectors.shape[1] else vectors.T


def random_signs(known: Tensor, generator: torch.Generator) -> Tensor:
    """A Rademacher vector (size,), drawn on the CPU, projected off the rows of `known` (k, size)."""
    return orthogonalised(torch.randint(2, known.shape[1:], generator=generator).mul(2).sub(1).to(known), known)


def _rule(operator: Operator, known: Tensor, steps: int, v: Tensor) -> Rule:
    mass = float(v.double().square().sum())
    m = min(steps, operator.size - len(known))
    if m < 1 or mass <= 1e-12 * operator.size:  # nothing is left of the spectrum
        return Rule(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64), 0.0, 0.0)
    basis = torch.empty(m, operator.size, dtype=operator.dtype, device=operator.device)
    alpha, beta = torch.zeros(m, dtype=torch.float64), torch.zeros(m, dtype=torch.float64)
    v, square = v / v.norm(), 0.0
    for j in range(m):
        basis[j] = v
        w = operator @ v
        alpha[j] = float(v.double() @ w.double())
        w = orthogonalised(w, known, basis[: j + 1])
        beta[j] = float(w.double().norm())
        if j == 0:
            square = mass * float(alpha[0] ** 2 + beta[0] ** 2)
        if float(beta[j]) <= 1e-7 * float(alpha[: j + 1].abs().max() + beta[:j].sum()):  # an invariant subspace
            m = j + 1
            break
        v = w / w.norm()
    nodes, s = torch.linalg.eigh(torch.diag(alpha[:m]) + torch.diag(beta[: m - 1], 1) + torch.diag(beta[: m - 1], -1))
    return Rule(nodes, s[0].square(), mass, square)


def spectral_sum(
    values: Tensor,
    found: Sequence[Rule],
    *functions: Callable[[Tensor], Tensor],
    combine: Callable[[Tensor], Tensor] = torch.sum,
) -> Estimate:
    """Sums of f over the spectrum, tr f(H) ~ sum_i f(theta_i) + mean_j mass_j sum_l w_jl f(nodes_jl), combined to one number.

    Args:
        values: known eigenvalues theta. found: rules of the rest.
        functions: f, elementwise. combine: maps their sums (len(functions),) to one number, e.g. a ratio.
    """
    known = torch.stack([function(values.double()).sum() for function in functions])
    samples = [[rule.mass * (rule.weights @ function(rule.nodes)) for function in functions] for rule in found]
    return combined(known, torch.tensor(samples, dtype=torch.float64), combine)


def combined(known: Tensor, samples: Tensor, combine: Callable[[Tensor], Tensor] = torch.sum) -> Estimate:
    """combine(known + mean of the samples), with the delete-one jackknife's error: s / sqrt(p) where it is linear.

    Args:
        known: (r,). samples: of p independent probes (p, r).

    >>> estimate = combined(torch.zeros(1), torch.tensor([[1.0], [2.0], [3.0]]))
    >>> round(estimate.value, 6), round(estimate.hi - estimate.lo, 4)  # 2 x 4.3027 x 1 / sqrt(3)
    (2.0, 4.9683)
    """
    p = len(samples)
    value = float(combine(known + samples.mean(0)))
    if p < 2:
        return Estimate(*student(value, 0.0, p))
    left_out = torch.stack([combine(known + (samples.sum(0) - sample) / (p - 1)) for sample in samples])
    return Estimate(*jackknife(value, left_out.double().cpu().numpy()))
