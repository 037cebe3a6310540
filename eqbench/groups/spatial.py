"""Lie groups that move pixels: what their vector fields do to images and to feature maps."""

from abc import abstractmethod
from typing import TYPE_CHECKING

from eqbench.groups.base import LieGroup

if TYPE_CHECKING:
    from torch import Tensor


class SpatialGroup(LieGroup):
    """exp(tX) moves every pixel u along a field: d/dt u = xi(u), so that d/dt exp(tX) x = -(xi . grad) x at t = 0."""

    @abstractmethod
    def field(self, generator: str, h: int, w: int, pixels: int | None = None) -> "Tensor":
        """xi: the velocity (dy, dx) of each cell of an h x w map a unit of t, in cells: float64 (2, h, w), y downwards.

        Args:
            pixels: the side of the image that the map was computed from; its cells tile the image. None: cells are pixels.
        """

    def velocity(self, x: "Tensor", generator: str, pixels: int | None = None) -> "Tensor":
        """-(xi . grad) x, by central differences.

        >>> import torch
        >>> from eqbench.groups import get
        >>> ramp = torch.arange(5.0).expand(1, 1, 5, 5)
        >>> get("translation").velocity(ramp, "translation_x")[0, 0, 2].tolist()
        [-0.5, -1.0, -1.0, -1.0, -0.5]
        """
        dy, dx = self.field(generator, x.shape[-2], x.shape[-1], pixels).to(x)
        along_y, along_x = central_gradient(x)
        return -(dy * along_y + dx * along_x)


def central_gradient(x: "Tensor") -> tuple["Tensor", "Tensor"]:
    """((x[i+1] - x[i-1]) / 2 along y, the same along x) of (..., h, w), a cell, with replicated borders."""
    import torch

    def along(dim: int) -> "Tensor":
        n = x.shape[dim]
        padded = torch.cat([x.narrow(dim, 0, 1), x, x.narrow(dim, n - 1, 1)], dim)
        return (padded.narrow(dim, 2, n) - padded.narrow(dim, 0, n)).div_(2)

    return along(-2), along(-1)


def positions(h: int, w: int, pixels: int | None = None) -> tuple["Tensor", "Tensor"]:
    """(y, x) of the cells' centres from the image's centre, in image px: float64 (h, 1) and (1, w).

    Args:
        pixels: the side of the image that the cells tile; None: cells are pixels.
    """
    import torch

    y, x = ((torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * _step(n, pixels) for n in (h, w))
    return y[:, None], x[None, :]


def cells(dy: "Tensor", dx: "Tensor", h: int, w: int, pixels: int | None = None) -> "Tensor":
    """A displacement (dy, dx) in image px, broadcast to (h, w), in cells: (2, h, w)."""
    import torch

    return torch.stack([dy.expand(h, w) / _step(h, pixels), dx.expand(h, w) / _step(w, pixels)])


def _step(n: int, pixels: int | None) -> float:
    return 1.0 if pixels is None else pixels / n
