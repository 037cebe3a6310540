"""Extreme eigenpairs of a symmetric operator by Lanczos with full reorthogonalisation."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

GRAM_SCHMIDT_PASSES = 2  # "twice is enough" (Parlett 1980, The Symmetric Eigenvalue Problem, sec. 6-9)


class Operator(Protocol):
    """A symmetric matrix known by its products with vectors (size,)."""

    size: int

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def __matmul__(self, v: Tensor) -> Tensor: ...


@dataclass
class Eigenpairs:
    """Rayleigh quotients, unit vectors (size, k), and fresh residuals |Hq - theta q|, largest value first."""

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: bool


def extreme_eigenpairs(
    operator: Operator, top: int, *, smallest: int = 1, tolerance: float = 1e-3, max_products: int = 80, seed: int = 0
) -> Eigenpairs:
    """The `top` largest and the `smallest` smallest eigenpairs, each checked by a product of its own.

    Lanczos (Golub & Van Loan, Matrix Computations, ch. 10) with two Gram-Schmidt passes against the whole basis; scalars
    in float64. It stops when every wanted Ritz pair has |beta_m s_m| <= tolerance |theta| (for pairs near zero: 1 % of
    the largest |theta| in its place), or at `max_products`. One vector cannot see the copies of a multiple eigenvalue.

    Args:
        operator: symmetric, (size, size). top, smallest: how many pairs from either end.
        tolerance: relative residual. max_products: products spent before the top + smallest checking ones.
        seed: of the starting vector.

    Returns:
        min(top + smallest, size) pairs; `converged` tells whether the fresh residuals meet the tolerance.

    >>> diagonal = torch.linspace(-1, 1, 200, dtype=torch.float64) ** 3
    >>> class Diagonal:
    ...     size, dtype, device = 200, torch.float64, torch.device("cpu")
    ...     def __matmul__(self, v):
    ...         return diagonal * v
    >>> pairs = extreme_eigenpairs(Diagonal(), 2, tolerance=1e-8)
    >>> torch.allclose(pairs.values, diagonal[[-1, -2, 0]], rtol=1e-12)
    True
    """
    generator = torch.Generator().manual_seed(seed)
    wanted = min(top + smallest, operator.size)
    steps = min(max(max_products, wanted), operator.size)
    basis = torch.empty(steps, operator.size, dtype=operator.dtype, device=operator.device)
    alpha, beta = torch.zeros(steps, dtype=torch.float64), torch.zeros(steps, dtype=torch.float64)
    v = _random_unit(operator, generator)
    m = 0
    while True:
        basis[m] = v
        w = operator @ v
        alpha[m] = float(w.double() @ v.double())
        for _ in range(GRAM_SCHMIDT_PASSES):
            w = w - basis[: m + 1].T @ (basis[: m + 1] @ w)
        beta[m] = float(w.double().norm())
        m += 1
        theta, s = torch.linalg.eigh(_tridiagonal(alpha[:m], beta[: m - 1]))
        index = _ends(m, top, smallest)
        invariant = float(beta[m - 1]) <= 1e-12 * float(theta.abs().max())  # the basis spans an invariant subspace
        small = beta[m - 1] * s[-1, index].abs() <= tolerance * theta[index].abs().clamp(
            min=0.01 * float(theta.abs().max())
        )
        if m == steps or (m >= wanted and not invariant and bool(small.all())):
            break
        if invariant:  # go on in its complement: there may be more eigenvalues of interest there
            w = _random_unit(operator, generator)
            for _ in range(GRAM_SCHMIDT_PASSES):
                w = w - basis[:m].T @ (basis[:m] @ w)
            beta[m - 1] = 0.0
        v = w / w.norm()
    vectors = basis[:m].T @ s[:, index].to(basis)
    return _check(operator, vectors / vectors.norm(dim=0), tolerance)


def _check(operator: Operator, vectors: Tensor, tolerance: float) -> Eigenpairs:
    """Rayleigh quotients and residuals by fresh products: nothing that the recurrence claimed is taken on trust."""
    images = torch.stack([operator @ q for q in vectors.T], 1).double()
    values = (images * vectors.double()).sum(0)
    residuals = (images - vectors.double() * values).norm(dim=0)
    order = values.argsort(descending=True)
    values, residuals = values[order].cpu(), residuals[order].cpu()
    bound = tolerance * values.abs().clamp(min=0.01 * float(values.abs().max()))
    return Eigenpairs(values, vectors[:, order], residuals, bool((residuals <= bound).all()))


def _ends(m: int, top: int, smallest: int) -> Tensor:
    """Indices of the `smallest` first and the `top` last of m ascending values, none twice."""
    return torch.tensor(sorted({*range(min(smallest, m)), *range(max(m - top, 0), m)}))


def _tridiagonal(alpha: Tensor, beta: Tensor) -> Tensor:
    return torch.diag(alpha) + torch.diag(beta, 1) + torch.diag(beta, -1)


def _random_unit(operator: Operator, generator: torch.Generator) -> Tensor:
    """Drawn on the CPU, so that every device starts from the same vector."""
    v = torch.randn(operator.size, generator=generator, dtype=torch.float64)
    return (v / v.norm()).to(operator.device, operator.dtype)
