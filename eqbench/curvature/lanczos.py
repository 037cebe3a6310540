"""Extreme eigenpairs of a symmetric operator by block Lanczos with full reorthogonalisation and thick restarts."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

GRAM_SCHMIDT_PASSES = 2  # "twice is enough" (Parlett 1980, The Symmetric Eigenvalue Problem, sec. 6-9)
BASIS_BYTES = 8 * 2**30  # of the basis, on the operator's device


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
    """Rayleigh quotients, unit vectors (size, k), and fresh residuals |Hq - theta q|, largest value first.

    Attributes:
        converged: whether the wanted pairs' fresh residuals meet the tolerance.
        products: how many were made, checks included.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: bool
    products: int


def extreme_eigenpairs(
    operator: Operator,
    top: int,
    *,
    smallest: int = 1,
    magnitude: int = 0,
    tolerance: float = 1e-3,
    max_products: int = 80,
    block: int = 1,
    basis_bytes: int = BASIS_BYTES,
    start: Tensor | None = None,
    seed: int = 0,
) -> Eigenpairs:
    """The `top` largest, the `smallest` smallest and the `magnitude` largest |eigenvalues|, each checked by a product.

    Lanczos (Golub & Van Loan, Matrix Computations, ch. 10): the Ritz pairs (theta, V's) of V'HV for a growing orthonormal
    basis V, each new vector orthogonalised twice against all of it; it stops when every wanted pair has |R s_last| <=
    tolerance |theta| (for pairs near zero: 1 % of the largest |theta| in its place), R coupling the next block to the last,
    or at `max_products`. When V is full, the best Ritz vectors stay and the rest is dropped: a thick restart (Wu & Simon
    2000, SIAM J. Matrix Anal. Appl. 22).

    Args:
        operator: symmetric, (size, size).
        tolerance: relative residual. max_products: products spent before the checking ones.
        block: vectors multiplied at once: one cannot see the copies of a multiple eigenvalue, b of them see up to b.
        basis_bytes: memory for V; below 2 (wanted + block) vectors, those are taken.
        start: of the first block (size,), mixed evenly with a random vector; seed: of that.

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
    wanted = min(top + smallest + magnitude, operator.size)
    room = basis_bytes // (operator.size * operator.dtype.itemsize)
    rows = min(max(room, 2 * (wanted + block)), max(max_products, wanted) + block, operator.size)
    basis = torch.empty(rows + block, operator.size, dtype=operator.dtype, device=operator.device)
    projected = torch.zeros(rows + block, rows + block, dtype=torch.float64)  # V'HV
    first = [_random(operator, generator) for _ in range(min(block, operator.size))]
    if start is not None:
        near = (start / start.norm()).to(first[0])
        first[0] = (
            first[0] + torch.sign(first[0] @ near) * near
        )  # an eigenvector's sign is arbitrary: it must not matter
    m, products, scale = 0, 0, 0.0  # basis vectors multiplied; scale: the largest |theta|
    count, drawn = _extend(basis, 0, first, 0.0, operator, generator)
    while True:
        images = [operator @ v for v in basis[m : m + count]]
        products, m = products + count, m + count
        for j, w in enumerate(images, m - count):
            projected[:m, j] = projected[j, :m] = (basis[:m] @ w).double().cpu()
            projected[j, j] = float(w.double() @ basis[j].double())
        theta, s = torch.linalg.eigh(projected[:m, :m])
        scale, index = float(theta.abs().max()), _ends(theta, top, smallest, magnitude)
        # A random vector beside an invariant subspace that H maps to zero: there is nothing else.
        exhausted = drawn and all(float(w.norm()) <= _rounding(operator) * scale for w in images)
        if m == operator.size or (m >= wanted and (exhausted or products >= max_products)):
            break
        count, drawn = _extend(basis, m, images[: operator.size - m], scale, operator, generator)
        coupling = (basis[m : m + count] @ torch.stack(images, 1)).double().cpu()
        residuals = (coupling @ s[-len(images) :, index]).norm(dim=0)
        if m >= wanted and not drawn and bool((residuals <= tolerance * _floored(theta[index], scale)).all()):
            break
        if m + count > rows:
            extra = (rows // 2 - wanted) // 2
            kept = _ends(theta, top + extra, smallest + extra, magnitude)
            for columns in basis.split(2**20, 1):
                columns[: len(kept)] = s[:, kept].T.to(basis) @ columns[:m]
                columns[len(kept) : len(kept) + count] = columns[m : m + count].clone()
            m = len(kept)
            projected[:m, :m] = torch.diag(theta[kept])
    vectors = basis[:m].T @ s[:, index].to(basis)
    del basis
    vectors /= vectors.norm(dim=0)
    return _check(operator, vectors, tolerance, products)


def orthogonalised(v: Tensor, *bases: Tensor) -> Tensor:
    """What of v is orthogonal to the rows of the bases (m, size)."""
    for _ in range(GRAM_SCHMIDT_PASSES):
        for basis in bases:
            v = v - basis.T @ (basis @ v)
    return v


def _extend(
    basis: Tensor, m: int, vectors: list[Tensor], scale: float, operator: Operator, generator: torch.Generator
) -> tuple[int, bool]:
    """Orthonormalise vectors into the rows of the basis from m on: how many, and whether one had to be drawn at random.

    Where nothing of one is left, the basis spans an invariant subspace: there may be more of interest in its complement.
    """
    drawn = False
    for j, v in enumerate(vectors, m):
        v = orthogonalised(v, basis[:j])
        if float(v.norm()) <= _rounding(operator) * scale:
            v, drawn = orthogonalised(_random(operator, generator), basis[:j]), True
        basis[j] = v / v.norm()
    return len(vectors), drawn or m == 0


def _check(operator: Operator, vectors: Tensor, tolerance: float, products: int) -> Eigenpairs:
    """Rayleigh quotients and residuals by fresh products: nothing that the recurrence claimed is taken on trust."""
    found = []
    for q in vectors.T:
        image = (operator @ q).double()
        value = image @ q.double()
        found.append(torch.stack([value, (image - value * q.double()).norm()]))
    values, residuals = torch.stack(found).T.cpu()
    order = values.argsort(descending=True)
    values, residuals = values[order], residuals[order]
    converged = bool((residuals <= tolerance * _floored(values, float(values.abs().max()))).all())
    return Eigenpairs(values, vectors[:, order.to(vectors.device)], residuals, converged, products + len(values))


def _floored(values: Tensor, scale: float) -> Tensor:
    """|values|, or 1 % of the scale for those near zero: what residuals are relative to."""
    return values.abs().clamp(min=0.01 * scale)


def _ends(theta: Tensor, top: int, smallest: int, magnitude: int) -> Tensor:
    """Indices of the `smallest` first, the `top` last, and the `magnitude` largest |values|, of ascending ones."""
    m = len(theta)
    largest = theta.abs().argsort(descending=True)[:magnitude].tolist()
    return torch.tensor(sorted({*range(min(smallest, m)), *range(max(m - top, 0), m), *largest}))


def _rounding(operator: Operator) -> float:
    return 10 * torch.finfo(operator.dtype).eps


def _random(operator: Operator, generator: torch.Generator) -> Tensor:
    """A random unit vector, drawn on the CPU, so that every device starts from the same one."""
    v = torch.randn(operator.size, generator=generator, dtype=torch.float64)
    return (v / v.norm()).to(operator.device, operator.dtype)
