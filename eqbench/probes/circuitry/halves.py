"""The images of the circuits and ablation probes: half of them to match units on, half to check the matches on."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eqbench.errors import Unsupported
from eqbench.probes.base import Subject

Halves = Sequence[Iterable[Tensor]]  # two: batches (B, 3, n, n), in every pass the same
IN_MEMORY = 10**9  # bytes of images that are decoded once and kept


@dataclass(frozen=True)
class Half:
    """The images that `mask` (n,) marks, at a size in pixels; decoded anew in every pass."""

    subject: Subject
    size: int
    mask: NDArray[np.bool_]

    def __iter__(self) -> Iterator[Tensor]:
        start = 0
        for x in self.subject.batches(self.size):
            mine = x[torch.from_numpy(self.mask[start : start + len(x)])]
            start += len(x)
            if len(mine):
                yield mine


def split(subject: Subject, size: int) -> Halves:
    """`Subject.fitted` and the other images.

    Raises:
        Unsupported: one of the halves is empty.
    """
    if subject.fitted.all() or not subject.fitted.any():
        raise Unsupported("the images are one cluster: matches cannot be checked on others")
    halves = [Half(subject, size, mask) for mask in (subject.fitted, ~subject.fitted)]
    return [list(half) for half in halves] if subject.n * 12 * size**2 <= IN_MEMORY else halves


def first(batches: Iterable[Tensor], images: int, device: torch.device) -> list[Tensor]:
    """So many images, or all if there are fewer, on a device."""
    found: list[Tensor] = []
    for x in batches:
        found.append(x[: images - sum(map(len, found))].to(device))
        if sum(map(len, found)) >= images:
            break
    return found
