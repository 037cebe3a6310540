"""Streaming moments of paired feature maps, and the matching of their channels."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

ROUNDING = 1e-12  # a channel whose variance is below this share of its mean square is constant up to rounding


class Moments:
    """First and second moments of the channels of a pair of maps (a, b), over images and positions.

    Memory is that of the (C, D) products, whatever the number of images. Maps are centred by the first batch's channel
    means before they are multiplied in their own dtype, and the products are summed in float64: a mean that all images
    share does not cancel. The sums stay on the maps' device.

    Attributes:
        count: positions summed over. mean_a, mean_b: (C,), (D,). cross: (C, D), the mean of (a - mean_a)(b - mean_b)^T.
        var_a, var_b: (C,), (D,). All float64.
    """

    def __init__(self) -> None:
        self.count = 0
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def update(self, a: Tensor, b: Tensor) -> None:
        """Add a batch of pairs.

        Args:
            a: (B, C, h, w). b: (B, D, h, w), the channels of the same images at the same positions.
        """
        a, b = channels(a), channels(b)
        if not self.count:
            self._shift_a, self._shift_b = a.mean(1, keepdim=True), b.mean(1, keepdim=True)
            like = a.new_zeros((), dtype=torch.float64)
            self._a, self._aa = like.new_zeros(len(a)), like.new_zeros(len(a))
            self._b, self._bb = like.new_zeros(len(b)), like.new_zeros(len(b))
            self._ab = like.new_zeros(len(a), len(b))
        self.count += a.shape[1]
        a, b = a - self._shift_a, b - self._shift_b
        self._a += a.sum(1)
        self._b += b.sum(1)
        self._aa += a.square().sum(1)
        self._bb += b.square().sum(1)
        self._waiting.append((a, b))
        if (
            sum(len(z.mT) for z, _ in self._waiting) >= len(a) // 4
        ):  # few positions: one larger product for several batches
            self._multiply()

    def _multiply(self) -> None:
        if self._waiting:
            a, b = (torch.cat(z, 1) for z in zip(*self._waiting, strict=True))
            self._ab += a @ b.mT
            self._waiting.clear()

    @property
    def mean_a(self) -> Tensor:
        return self._shift_a[:, 0] + self._a / self.count

    @property
    def mean_b(self) -> Tensor:
        return self._shift_b[:, 0] + self._b / self.count

    @property
    def var_a(self) -> Tensor:
        return (self._aa / self.count - (self._a / self.count).square()).clamp(min=0)

    @property
    def var_b(self) -> Tensor:
        return (self._bb / self.count - (self._b / self.count).square()).clamp(min=0)

    @property
    def cross(self) -> Tensor:
        self._multiply()
        return self._ab / self.count - torch.outer(self._a, self._b) / self.count**2

    def correlation(self) -> Tensor:
        """Corr(a_i, b_j) over images and positions: (C, D) float64 in [-1, 1]; 0 where a channel is constant.

        >>> a = torch.randn(4, 3, 5, 5)
        >>> moments = Moments()
        >>> for part in a.split(2):
        ...     moments.update(part, -part)
        >>> dense = torch.corrcoef(channels(a).double())
        >>> bool((moments.correlation() + dense).abs().max() < 1e-6)
        True
        """
        scale = torch.outer(reciprocal(self.var_a, self.mean_a), reciprocal(self.var_b, self.mean_b))
        return (self.cross * scale).clamp(-1, 1)


def channels(maps: Tensor) -> Tensor:
    """Maps (B, C, h, w) as a matrix (C, B h w): a view where channels come last in memory (tokens)."""
    return maps.transpose(0, 1).flatten(1)


def reciprocal(variance: Tensor, mean: Tensor) -> Tensor:
    """1 / standard deviation, or 0 for a constant channel."""
    constant = variance <= ROUNDING * (variance + mean.square())
    return torch.where(constant, 0.0, variance.clamp(min=torch.finfo(torch.float64).tiny).rsqrt())


def match(correlation: Tensor) -> Tensor:
    """The permutation of channels that maximises the sum of correlations: b_{pi[i]} is the partner of a_i.

    pi = argmax_pi sum_i corr(a_i, b_{pi[i]}), a linear assignment (Bökman & Kahl 2023, NeurIPS; Ainsworth et al. 2023,
    ICLR).

    Args:
        correlation: (C, C), rows of a, columns of b.

    Returns:
        (C,) int64 on the CPU.

    >>> pi = torch.tensor([2, 0, 1])
    >>> match(torch.eye(3)[:, pi].T + 0.1 * torch.rand(3, 3)).tolist()
    [2, 0, 1]
    """
    _, columns = linear_sum_assignment(correlation.detach().cpu().numpy(), maximize=True)
    return torch.from_numpy(columns).long()
