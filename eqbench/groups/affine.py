"""Linear maps of the plane about the image's centre: rotation, scale, shears, stretches, hyperbolic rotation, all of GL(2).

Each is the one-parameter group exp(tA) of a 2 x 2 matrix A. Finite actions are seen through a disc that is the same for
every t, 0 included, and so small that no t of the sweep shows anything from beyond the image's border through it.
"""

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from eqbench.errors import UserError
from eqbench.groups import lattice
from eqbench.groups.base import FiniteGroup, Group
from eqbench.groups.resampling import through_disc, warp
from eqbench.groups.spatial import SpatialGroup, cells, positions
from eqbench.groups.translation import Translation

if TYPE_CHECKING:
    from torch import Tensor

Matrix = tuple[tuple[float, float], tuple[float, float]]  # on (y, x), y downwards


class Linear(SpatialGroup):
    """exp(tA) acting on positions: (exp(tX) x)(u) = x(exp(-tA) u), xi(u) = A u.

    Attributes:
        matrix: A. unit: of t. reach: the largest |t| that acts, where lengths change at all.
        growth: the largest |eigenvalue| of (A + A^T) / 2, so that |exp(tA)| <= exp(growth |t|); 0 for rotations.
        share: the radius of the disc, exp(-growth reach) of the inscribed one.
    """

    interpolation = (
        "cubic B-splines at twice the resolution, low-pass at the Nyquist frequency, disc with a cosine edge;"
        " velocity: central difference"
    )

    def __init__(self, name: str, matrix: Matrix, unit: str, reach: float) -> None:
        self.name = name
        self.matrix = matrix
        self.unit = unit
        self.reach = reach
        (yy, yx), (xy, xx) = matrix
        self.growth = (abs(yy + xx) + math.hypot(yy - xx, yx + xy)) / 2
        self.share = math.exp(-self.growth * reach)

    def generators(self) -> Sequence[str]:
        return (self.name,)

    def act(self, x: "Tensor", g: tuple[str, float]) -> "Tensor":
        """exp(tX) x for images (..., H, W), through the disc.

        Raises:
            UserError: |t| is beyond `reach`: the disc would show what lies outside the image.

        >>> import torch
        >>> x, turn = torch.rand(3, 16, 16, dtype=torch.float64), GROUPS["rotation"]
        >>> gap = turn.act(x, ("rotation", math.pi / 2)) - turn.act(x, ("rotation", 0.0)).rot90(1, (-2, -1))
        >>> bool(gap.abs().max() < 1e-12)
        True
        """
        return through_disc(self._moved(x, g[1]), self.share)

    def filled(self, x: "Tensor", g: tuple[str, float]) -> "Tensor":
        """Without the disc: corners that come from beyond the border show the image mirrored at it."""
        return self._moved(x, g[1])

    def round_trip(self, x: "Tensor", g: tuple[str, float]) -> "Tensor":
        """Through the disc once, at the end: it would cut off on the way what comes back."""
        return through_disc(self._moved(self._moved(x, g[1]), -g[1]), self.share)

    def _moved(self, x: "Tensor", t: float) -> "Tensor":
        import torch

        if self.growth * abs(t) > self.growth * self.reach * (1 + 1e-9):
            raise UserError(f"group '{self.name}': |t| is at most {self.reach:.4g} {self.unit}, not {t:.4g}")
        (yy, yx), (xy, xx) = torch.linalg.matrix_exp(-t * torch.tensor(self.matrix, dtype=torch.float64)).tolist()
        return warp(x, lambda y, x: (yy * y + yx * x, xy * y + xx * x))

    def field(self, generator: str, h: int, w: int, pixels: int | None = None) -> "Tensor":
        (yy, yx), (xy, xx) = self.matrix
        y, x = positions(h, w, pixels)
        return cells(yy * y + yx * x, xy * y + xx * x, h, w, pixels)

    def sweep(self, generator: str, size: int) -> Sequence[float]:
        """Every 15 degrees of the circle, or nine values from -reach to reach."""
        if not self.growth:
            return [math.radians(15 * i) for i in range(24)]
        return [self.reach * i / 4 for i in range(-4, 5)]

    def farthest(self, generator: str, size: int) -> float:
        return self.reach

    def subgroups(self) -> Sequence[FiniteGroup]:
        return () if self.growth else (lattice.GROUPS["c4"],)


class Affine(SpatialGroup):
    """The affine group of the plane, by generators that span gl(2) + R^2; each acts as the one-parameter group it names."""

    name = "affine"
    unit = "px, rad or log-scale: that of the generator's own group"
    interpolation = f"translations: {Translation.interpolation}; others: {Linear.interpolation}"

    def __init__(self, members: Sequence[SpatialGroup]) -> None:
        self._members = {generator: group for group in members for generator in group.generators()}

    def generators(self) -> Sequence[str]:
        return tuple(self._members)

    def key(self, g: tuple[str, float]) -> Hashable:
        return self._members[g[0]].key(g)

    def act(self, x: "Tensor", g: tuple[str, float]) -> "Tensor":
        return self._members[g[0]].act(x, g)

    def filled(self, x: "Tensor", g: tuple[str, float]) -> "Tensor":
        return self._members[g[0]].filled(x, g)

    def round_trip(self, x: "Tensor", g: tuple[str, float]) -> "Tensor":
        return self._members[g[0]].round_trip(x, g)

    def field(self, generator: str, h: int, w: int, pixels: int | None = None) -> "Tensor":
        return self._members[generator].field(generator, h, w, pixels)

    def sweep(self, generator: str, size: int) -> Sequence[float]:
        return self._members[generator].sweep(generator, size)

    def farthest(self, generator: str, size: int) -> float:
        return self._members[generator].farthest(generator, size)

    def subgroups(self) -> Sequence[FiniteGroup]:
        members = dict.fromkeys(self._members.values())
        return [subgroup for group in members for subgroup in group.subgroups()]


FIFTH = math.log(1.25)  # scales from 0.8 to 1.25

LINEAR = {
    group.name: group
    for group in (
        Linear("rotation", ((0, -1), (1, 0)), "rad", math.pi),  # counter-clockwise, as `rot90`
        Linear("scale", ((1, 0), (0, 1)), "log-scale", FIFTH),
        Linear("stretch_x", ((0, 0), (0, 1)), "log-scale", FIFTH),
        Linear("stretch_y", ((1, 0), (0, 0)), "log-scale", FIFTH),
        Linear("shear_x", ((0, 0), (1, 0)), "px/px", 0.4),  # rows move: dx = t y
        Linear("shear_y", ((0, 1), (0, 0)), "px/px", 0.4),  # columns move: dy = t x
        Linear("hyperbolic", ((0, 1), (1, 0)), "rapidity", FIFTH),  # stretches one diagonal, shrinks the other
    )
}
# The shears are half-sums and half-differences of rotation and hyperbolic, so that these four span gl(2).
AFFINE = Affine([Translation(), *(LINEAR[name] for name in ("rotation", "scale", "stretch_x", "hyperbolic"))])
GROUPS: dict[str, Group] = {**LINEAR, AFFINE.name: AFFINE}
