"""Directions of image space: velocities of a Lie group, their sharpening parts, and controls of the same spectrum."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from eqbench.groups import LieGroup
from eqbench.groups.spatial import SpatialGroup, central_gradient
from eqbench.stats import Array


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Images (B, 3, H, W) filtered by a Gaussian of width sigma px, with replicated borders.

    >>> ramp = torch.arange(9.0, dtype=torch.float64).expand(1, 3, 9, 9)
    >>> bool((blurred(ramp, 0.5) - ramp)[..., 2:-2].abs().max() < 1e-12)
    True
    """
    reach = math.ceil(4 * sigma)
    if not reach:
        return x
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(x).expand(x.shape[1], 1, 1, -1)
    for _ in range(2):
        padded = nn.functional.pad(x, (reach, reach, 0, 0), mode="replicate")
        x = nn.functional.conv2d(padded, kernel, groups=x.shape[1]).mT
    return x.contiguous()


class Velocities:
    """v_X = d/dt exp(tX) z at t = 0, for every generator of a group, on images and on feature maps.

    Attributes:
        group: the group. size: the side of the images, px. generators: their names.
    """

    def __init__(self, group: LieGroup, size: int) -> None:
        self.group, self.size = group, size
        self.generators: Sequence[str] = tuple(group.generators())
        # The gradient of a map is then the same for all generators.
        self.central = isinstance(group, SpatialGroup) and type(group).velocity is SpatialGroup.velocity
        self._fields: dict[tuple[int, int, torch.dtype, torch.device], tuple[Tensor, list[list[bool]]]] = {}

    def fields(self, z: Tensor) -> tuple[Tensor, list[list[bool]]]:
        """Xi of every generator on the cells of z (..., h, w), (G, 2, h, w), in cells a unit of t; where it is not 0."""
        assert isinstance(self.group, SpatialGroup)
        h, w = z.shape[-2:]
        key = (h, w, z.dtype, z.device)
        if key not in self._fields:
            exact = torch.stack([self.group.field(X, h, w, self.size) for X in self.generators])
            self._fields[key] = exact.to(z), (exact != 0).flatten(2).any(2).tolist()
        return self._fields[key]

    def images(self, x: Tensor) -> Tensor:
        """v_X of the images x (B, 3, n, n): (G, B, 3, n, n)."""
        return torch.stack([self.group.velocity(x, X) for X in self.generators])

    def errors(self, z: Tensor, tangents: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """L_X f = J v_X - v_X(f) of a map, and how large v_X(f) is, a generator at a time (it fits in a cache).

        Args:
            z: f(x), (B, C, h, w). tangents: J v_X of every generator, (G, B, C, h, w).

        Yields:
            (L (B, C, h, w), |v_X(f)|^2 over the channels (B, h, w)).
        """
        if not self.central:
            for X, straight in zip(self.generators, tangents, strict=True):
                moved = self.group.velocity(z, X, pixels=self.size)
                yield straight - moved, moved.square().sum(1)
            return
        along_y, along_x = central_gradient(z)
        yy, xx, yx = ((a * b).sum(1) for a, b in ((along_y, along_y), (along_x, along_x), (along_y, along_x)))
        for straight, (dy, dx), (moves_y, moves_x) in zip(tangents, *self.fields(z), strict=True):
            error = torch.addcmul(straight, dy, along_y) if moves_y else straight
            error = torch.addcmul(error, dx, along_x) if moves_x else error
            yield error, dy**2 * yy + 2 * dy * dx * yx + dx**2 * xx

    def sharpening(self, x: Tensor) -> Tensor:
        """The even part of a one-sided derivative of interpolated images along every generator: (G, B, 3, n, n).

        e_X = xi_y (x[i+1] - 2 x[i] + x[i-1]) / 2 along y + the same along x. The difference (x[i+1] - x[i]) that linear
        interpolation has on one side of a pixel is the central one and this, which sharpens or blurs, and moves nothing:
        xi . difference = e_X - v_X.
        """
        rows, columns = (nn.functional.pad(x, pad, mode="replicate") for pad in ((0, 0, 1, 1), (1, 1, 0, 0)))
        along_y = rows[..., 2:, :] - 2 * x + rows[..., :-2, :]
        along_x = columns[..., 2:] - 2 * x + columns[..., :-2]
        dy, dx = self.fields(x)[0][:, :, None, None].unbind(1)
        return (dy * along_y + dx * along_x) / 2

    def displacement(self) -> Array:
        """The mean square displacement a unit of t, px^2, where the group moves pixels: (G,); 1 where it does not."""
        if not isinstance(self.group, SpatialGroup):
            return np.ones(len(self.generators))
        n = self.size
        return np.array([float(self.group.field(X, n, n).square().sum(0).mean()) for X in self.generators])


def controls(v: Tensor, first: int, count: int) -> Tensor:
    """Random directions with the spectrum of v, in expectation over generators of one norm each.

    u = sum_X F^-1 [ exp(i phi_X) F v_X ] / |v_X| with independent random phases phi_X, the same for the three colours.
    The response E|Ju|^2 is linear in the spectrum, so that it is sum_X E|J u_X|^2 / |v_X|^2 for any J: one direction stands
    for those of all generators. The phases of the mean colour, which are signs, are kept random too.

    Args:
        v: (G, B, 3, n, n). first: index of the first image, which seeds its phases. count: directions an image.

    Returns:
        (count, B, 3, n, n), with E|u|^2 = G (fewer where a v_X is 0).
    """
    generators, images, _, height, width = v.shape
    drawn = [phases((count, generators), height, width, first + i) for i in range(images)]
    norm = v.flatten(2).norm(dim=2).clamp(min=1e-20)[:, :, None, None, None]
    spectrum = torch.fft.rfft2(v / norm)
    turned = [torch.einsum("kghw,gchw->kchw", turn.to(spectrum), spectrum[:, i]) for i, turn in enumerate(drawn)]
    return torch.fft.irfft2(torch.stack(turned, 1), (height, width))


def phases(shape: tuple[int, ...], height: int, width: int, seed: int) -> Tensor:
    """exp(i phi), phi uniform, of the half spectrum of random real fields: complex64 (*shape, height, width // 2 + 1).

    >>> turn = phases((2,), 6, 8, 0)
    >>> white = torch.randn(6, 8)
    >>> both = torch.fft.irfft2(turn * torch.fft.rfft2(white), (6, 8))
    >>> bool(torch.allclose(both.flatten(1).norm(dim=1), white.norm()))
    True
    """
    generator = torch.Generator().manual_seed(seed)
    angle = torch.rand(*shape, height, width // 2 + 1, generator=generator) * (2 * torch.pi)
    # The frequencies (k, 0), and (k, width / 2) if there are, occur together with their opposites (-k, ...).
    row = torch.arange(height)
    opposite = (-row) % height
    for column in {0, width // 2} if width % 2 == 0 else {0}:
        own = angle[..., column]
        own = torch.where(row < opposite, own, -own[..., opposite])
        sign = torch.pi * (angle[..., column] > torch.pi)
        angle[..., column] = torch.where(row == opposite, sign, own)
    return torch.polar(torch.ones_like(angle), angle)
