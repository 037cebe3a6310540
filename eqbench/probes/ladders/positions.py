"""The positions of a feature map that are read, and where the elements of a group take them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eqbench.errors import Unsupported
from eqbench.groups import FiniteGroup

LEAST = 64  # positions read of each map, or a quarter of its channels: those beside them say little that is new
ORBITS = 1024  # positions at which images are compared with each other
FEW = 64  # positions whose units have their variances normalised


class Positions:
    """Which positions of maps of one shape are read, and how R_g^-1 z is read at them without moving z whole.

    Of a large map each image gives the next few positions of one shuffled round through all of them, so that borders and
    corners count for what they are.
    """

    def __init__(self, shape: tuple[int, int, int], group: FiniteGroup | None, size: int, device: torch.device) -> None:
        """Plan where R_g^-1 z is to be read from z.

        Args:
            shape: (C, h, w) of the maps. group: what moves their cells; None: nothing does.
            size: of the images that the maps were computed from, pixels.

        Raises:
            Unsupported, UserError: the group does not move the cells of maps of this shape.
        """
        channels, *grid = shape
        self._group, self._size, self._count = group, size, max(LEAST, channels // 4)
        self._sources = _sources(grid, group, size) if group else {}
        cells = torch.arange(math.prod(grid))
        luck = torch.rand(len(cells), generator=torch.Generator().manual_seed(0))
        self._round = luck.argsort().to(device)
        orbits = torch.stack([cells, *self._sources.values()]).amin(0)
        by_orbit = luck[orbits].argsort(stable=True)
        cut = orbits[by_orbit[ORBITS:][:1]]  # the first orbit that does not fit
        whole = by_orbit[: int((orbits[by_orbit] == cut).nonzero()[0])] if len(cut) else cells[:0]
        self._orbits = whole.sort().values.to(device) if len(whole) else None
        self._sources = {g: source.to(device) for g, source in self._sources.items()}

    def plain(self, maps: Tensor, start: int) -> Tensor:
        """Z at the positions of images number `start` and the following: (B, k, C), contiguous, of maps (B, C, h, w)."""
        return rows(maps, self._places(start, len(maps)))

    def pulled(self, maps: Tensor, g: Any, start: int) -> Tensor:
        """R_g^-1 z at the positions of `plain`."""
        return self._pull(maps, g, self._places(start, len(maps)))

    def few(self, maps: Tensor, g: Any | None) -> tuple[Tensor, Tensor]:
        """Z and R_g^-1 z, g None for the identity, at a few positions that are the same for all images: (B, k, C) each."""
        places = self._round[:FEW].expand(len(maps), -1)
        plain = rows(maps, places)
        return plain, plain if g is None or self._group is None else self._pull(maps, g, places)

    def compared(self, maps: Tensor) -> Tensor:
        """Z at positions that the group permutes, the same for all images, in whatever order: (B, ...)."""
        flat = maps.flatten(2)
        if flat.stride(1) == 1:
            return flat.mT if self._orbits is None else flat.mT.index_select(1, self._orbits)
        return flat if self._orbits is None else flat.gather(2, self._orbits.expand(*flat.shape[:2], -1))

    def _pull(self, maps: Tensor, g: Any, places: Tensor | None) -> Tensor:
        if self._group is None:
            return rows(maps, places)
        if g not in self._sources:
            return rows(self._group.act_features(maps, self._group.inverse(g), self._size), places)
        source = self._sources[g]
        return rows(maps, None).index_select(1, source) if places is None else rows(maps, source[places])

    def _places(self, start: int, images: int) -> Tensor | None:
        """The cells that are read of each image: (images, k); None: all of them, in order."""
        cells = len(self._round)
        if cells <= self._count:
            return None
        numbers = torch.arange(start * self._count, (start + images) * self._count, device=self._round.device)
        return self._round[numbers % cells].view(images, -1)


def _sources(shape: Sequence[int], group: FiniteGroup, size: int) -> dict[Any, Tensor]:
    """For each element g: which cell of z each cell of R_g^-1 z is; without those that put cells between cells."""
    grid = torch.arange(shape[0] * shape[1], dtype=torch.float64).view(1, 1, *shape)
    found = {}
    for g in group.elements():
        source = group.act_features(grid, group.inverse(g), size)
        if source.shape != grid.shape:
            raise Unsupported(f"an element does not keep the shape of maps of {shape[0]} x {shape[1]} cells")
        if torch.equal(source.flatten().sort().values, grid.flatten()):
            found[g] = source.flatten().long()
    return found


def rows(maps: Tensor, places: Tensor | None) -> Tensor:
    """Maps (B, C, h, w) at cells (B, k), or at all, as (B, k, C), contiguous."""
    flat = maps.flatten(2).mT
    return flat.contiguous() if places is None else flat[torch.arange(len(flat), device=flat.device)[:, None], places]
