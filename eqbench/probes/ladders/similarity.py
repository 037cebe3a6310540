"""How alike two sets of features are, in streaming form: debiased linear CKA, and normalised variance over a group."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from eqbench.probes.ladders.matching import ROUNDING


def hsic(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
    """The unbiased estimate of HSIC of two Gram matrices (Song et al. 2012, JMLR, eq. 5).

    HSIC_1 = [ tr KL + 1'K1 1'L1 / ((n-1)(n-2)) - 2 1'KL1 / (n-2) ] / (n (n-3)), with zeroed diagonals.

    Args:
        k, l: (..., n, n) symmetric, n of at least 4. Computed in float64; a constant row and column added to either
            changes nothing, so features need no centring but for rounding.

    >>> x = torch.randn(6, 3)
    >>> bool((hsic(x @ x.T, x @ x.T) - hsic(x @ x.T + 5, x @ x.T)).abs() < 1e-5)
    True
    """
    n = k.shape[-1]
    hollow = 1 - torch.eye(n, dtype=torch.float64, device=k.device)
    k, l = k.double() * hollow, l.double() * hollow  # noqa: E741
    rows_k, rows_l = k.sum(-1), l.sum(-1)
    both = rows_k.sum(-1) * rows_l.sum(-1) / ((n - 1) * (n - 2)) - 2 * (rows_k * rows_l).sum(-1) / (n - 2)
    return ((k * l).sum((-2, -1)) + both) / (n * (n - 3))


def gram(features: Tensor) -> Tensor:
    """Inner products between the images of a batch (B, ...): (B, B); what all share is left out, it would cancel."""
    flat = (features - features.mean(0)).flatten(1)
    return flat @ flat.mT


class NormalisedVariance:
    """NV = mean over units of TV / SV, with TV = mean_x std_g f(gx) and SV = mean_g std_x f(gx); 0 / 0 counts as 1.

    What Quiroga et al. (2020) call variances are standard deviations, with n - 1, as in their library tmeasures; that
    makes unrelated Gaussian features have NV = `unrelated(m)` over m elements, a little below 1. A unit is a channel at
    a position. Memory: a few numbers a unit and element.
    """

    def __init__(self) -> None:
        self.count = 0

    def update(self, maps: Sequence[Tensor]) -> None:
        """Add the features (B, *units) of a batch of images under each of the m elements, the identity first."""
        still, m = maps[0], len(maps)
        if not self.count:
            self._shift = still.mean(0)
            self._sums = still.new_zeros(m, *still.shape[1:])
            self._squares = torch.zeros_like(self._sums)
            self._within = torch.zeros_like(self._shift)
        self.count += len(still)
        gaps = [z - still for z in maps[1:]]  # exactly 0 for an exact symmetry
        total, square = gaps[0].clone(), gaps[0].square()
        for gap in gaps[1:]:
            total += gap
            square.addcmul_(gap, gap)
        self._within += square.addcmul_(total, total, value=-1 / m).clamp_(min=0).div_(m - 1).sqrt_().sum(0)
        for i, z in enumerate(maps):
            z = z - self._shift
            self._sums[i] += z.sum(0)
            self._squares[i] += z.square_().sum(0)

    @property
    def constant(self) -> bool:
        """Whether the features are the same for every image, up to rounding."""
        spread = (self._squares - self._sums.square() / self.count).sum()
        return bool(spread <= ROUNDING * self.count * len(self._sums) * self._shift.square().sum())

    def value(self) -> Tensor:
        """NV, a scalar in float64."""
        sums, squares, n = self._sums.double(), self._squares.double(), self.count
        across = ((squares - sums.square() / n).clamp(min=0) / (n - 1)).sqrt().mean(0)
        ratio = self._within.double() / n / across
        return torch.where((self._within == 0) & (across == 0), 1.0, ratio).mean()


def unrelated(m: int) -> float:
    """NV of unrelated Gaussian features: the mean of the standard deviation (n - 1) of m draws of variance 1.

    >>> draws = torch.randn(100_000, 3, generator=torch.Generator().manual_seed(0))
    >>> abs(draws.std(1).mean().item() - unrelated(3)) < 5e-3
    True
    """
    return math.sqrt(2 / (m - 1)) * math.gamma(m / 2) / math.gamma((m - 1) / 2)
