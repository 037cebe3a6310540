"""Translations: circular shifts by quarters of the side, sub-pixel shifts by Fourier phase, and windows of larger images.

Only windows (`crop`) translate what a camera saw: a circular shift, of whole or of fractional pixels, brings the other end
of the image in at a seam.
"""

from collections.abc import Sequence
from itertools import product
from random import Random
from typing import TYPE_CHECKING

from eqbench.errors import Misfit, UserError
from eqbench.groups.base import FiniteGroup, Group
from eqbench.groups.permutation import permute_tiles
from eqbench.groups.spatial import SpatialGroup, cells

if TYPE_CHECKING:
    from torch import Tensor

Shift = tuple[int, int]  # (dy, dx) in quarters of the side, downwards and to the right
PARTS = 4  # quarters: few enough to measure, and the law holds exactly at every size that 4 divides
PHASES, HALF_PIXELS = 32, 8  # of a sweep; the total stride of most classifiers is 32 px
AXES = {"translation_y": -2, "translation_x": -1}


class CircularShifts(FiniteGroup):
    """Z_4 x Z_4: circular shifts by quarters of the side, with one seam along each axis.

    `scrambled`, it is conjugate to them by a shuffle of the 4 x 4 tiles: permutations of tiles with the same law, which are
    no shifts and cut the image at more borders than one.
    """

    exact = True

    def __init__(self, name: str, scrambled: bool = False) -> None:
        self.name = name
        self.interpolation = "none; seams " + ("between 4 x 4 tiles" if scrambled else "where the image goes round")
        self._places = list(range(PARTS**2))
        if scrambled:
            Random(0).shuffle(self._places)

    def elements(self) -> Sequence[Shift]:
        return tuple(product(range(PARTS), range(PARTS)))

    def generators(self) -> Sequence[Shift]:
        return (1, 0), (0, 1)

    def multiply(self, g: Shift, h: Shift) -> Shift:
        return (g[0] + h[0]) % PARTS, (g[1] + h[1]) % PARTS

    def keeps_shape(self, g: Shift) -> bool:
        return True

    def act(self, x: "Tensor", g: Shift) -> "Tensor":
        height, width = x.shape[-2:]
        if height % PARTS or width % PARTS:
            raise Misfit(
                f"group '{self.name}' shifts by quarters of the side: it acts on images and maps whose height and width are"
                f" multiples of {PARTS}, not on {height} x {width}"
            )
        back = sorted(range(PARTS**2), key=self._places.__getitem__)
        tiles = permute_tiles(x, self._places, PARTS, PARTS)
        moved = tiles.roll((g[0] * height // PARTS, g[1] * width // PARTS), (-2, -1))
        return permute_tiles(moved, back, PARTS, PARTS)


class Translation(SpatialGroup):
    """R^2: x moves t px to the right (`translation_x`) or downwards (`translation_y`), cyclically.

    The finite action is the Fourier shift theorem, exp(tX) x = F^-1 exp(-2 pi i k t / n) F x along one axis: exact for
    band-limited images, and the circular shift for whole t. The velocity is a central difference.
    """

    name = "translation"
    unit = "px"
    interpolation = "Fourier phase (band-limited, periodic: a seam); velocity: central difference"

    def generators(self) -> Sequence[str]:
        return tuple(AXES)

    def act(self, x: "Tensor", g: tuple[str, float]) -> "Tensor":
        """exp(tX) x for images (..., H, W).

        >>> import torch
        >>> x = torch.rand(3, 8, 8, dtype=torch.float64)
        >>> moved = Translation().act(x, ("translation_x", 3.0))
        >>> bool((moved - x.roll(3, -1)).abs().max() < 1e-14)
        True
        """
        import torch

        axis, t = AXES[g[0]], g[1]
        n = x.shape[axis]
        k = torch.arange(n // 2 + 1, dtype=torch.float64)
        turn = torch.exp(-2j * torch.pi * (k * t).remainder(n) / n)
        if n % 2 == 0:
            turn[-1] = turn[-1].real.clone()  # the two halves of the Nyquist frequency turn opposite ways: cos(pi t)
        spectrum = torch.fft.rfft(x, dim=axis)
        turn = turn.to(spectrum).view(-1, *[1] * (-1 - axis))
        return torch.fft.irfft(spectrum * turn, n, dim=axis)

    def field(self, generator: str, h: int, w: int, pixels: int | None = None) -> "Tensor":
        import torch

        one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
        return cells(*((one, zero) if AXES[generator] == -2 else (zero, one)), h, w, pixels)

    def sweep(self, generator: str, size: int) -> Sequence[float]:
        """The phases 0, 1, ..., 31 px, and 0.5, 1.5, ..., 7.5 px; up to half the side, beyond which it is a shift back."""
        phases = [float(t) for t in range(PHASES)] + [t + 0.5 for t in range(HALF_PIXELS)]
        return sorted(t for t in phases if t <= size / 2)

    def subgroups(self) -> Sequence[FiniteGroup]:
        return (CircularShifts("translation_circular"),)


def crop(x: "Tensor", dy: int, dx: int, size: int) -> "Tensor":
    """The window of size x size px whose top left corner is pixel (dy, dx) of the images (..., H, W).

    Two windows of one image differ by a true translation: that of `dx + 1` shows everything one px further left than that of
    `dx`. Zhang (2019) draws offsets from {0..31}^2, windows of 224 px from 256 px.

    Raises:
        UserError: the window does not lie inside the image.

    >>> import torch
    >>> crop(torch.arange(16).view(4, 4), 1, 2, 2).tolist()
    [[6, 7], [10, 11]]
    """
    height, width = x.shape[-2:]
    if not (0 <= dy <= height - size and 0 <= dx <= width - size and size > 0):
        raise UserError(f"a window of {size} px at ({dy}, {dx}) does not lie inside an image of {height} x {width} px")
    return x[..., dy : dy + size, dx : dx + size]


GROUPS: dict[str, Group] = {
    group.name: group
    for group in (
        CircularShifts("translation_circular"),
        CircularShifts("translation_scrambled", scrambled=True),
        Translation(),
    )
}

# Its borders between tiles are seams that shifts do not have: read it as an upper bound of the gap.
PLACEBOS = {"translation_circular": "translation_scrambled"}
