"""The trace of a symmetric operator by Hutchinson's estimator, deflated by eigenvectors that are already known."""

from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor

from eqbench.curvature.lanczos import Operator


@dataclass
class Estimate:
    """A value and its 95 % interval by Student's t."""

    value: float
    lo: float
    hi: float


def deflated_trace(operator: Operator, values: Tensor, vectors: Tensor, products: int, seed: int = 0) -> Estimate:
    """The trace, sum_i q_i'Hq_i + E v'(I - QQ')H(I - QQ')v with Rademacher v: Q's part is exact, the rest estimated.

    Hutchinson 1990; deflation as in Hutch++ (Meyer, Musco, Musco & Woodruff 2021, SOSA), with Ritz vectors for Q, so that
    every probe is an unbiased sample of the rest and the standard error s / sqrt(products) is honest.

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
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(vectors)  # orthonormal to rounding, whatever the caller's dtype left of it
    samples = torch.empty(products, dtype=torch.float64)
    for j in range(products):
        v = torch.randint(2, (operator.size,), generator=generator).mul(2).sub(1).to(q)
        v = v - q @ (q.T @ v)
        samples[j] = float(v.double() @ (operator @ v).double())
    value = float(values.double().sum() + samples.mean())
    error = float(samples.std() / products**0.5)
    half = float(stdtrit(products - 1, 0.975)) * error
    return Estimate(value, value - half, value + half)
