"""What a training step is fed with: labelled images at a network's size, acted on by random group elements."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eqbench.data import Dataset
from eqbench.groups import FiniteGroup, Group, LieGroup
from eqbench.models import Network
from eqbench.preprocessing import gather

IN_MEMORY = 1_000_000_000  # bytes of uint8 images that are decoded once and kept
PARTS = 8  # elements of a continuous group that act on one batch, each on its part: resampling is dear


class Images:
    """A labelled data set at a network's size, on a device: uint8 in memory if it fits, else decoded for each batch."""

    def __init__(self, dataset: Dataset, network: Network, crop_pct: float, device: torch.device) -> None:
        assert dataset.labels is not None
        self.dataset, self.device = dataset, device
        self.view = (network.size, network.interpolation, crop_pct)
        self.labels = torch.from_numpy(dataset.labels).to(device)
        small = len(dataset) * 3 * network.size**2 < IN_MEMORY
        self.pixels = self._gather(range(len(dataset))).to(device) if small else None

    def __len__(self) -> int:
        return len(self.dataset)

    def _gather(self, rows: Sequence[int]) -> Tensor:
        return gather(self.dataset, rows, *self.view)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(float32 (b, 3, size, size) in [0, 1], int64 labels (b,)), on the device."""
        pixels = self._gather(rows.tolist()) if self.pixels is None else self.pixels[rows.to(self.device)]
        return pixels.to(self.device).float() / 255, self.labels[rows.to(self.device)]


class _Chosen:
    """Some of a data set's images."""

    def __init__(self, images: Any, rows: Sequence[int]) -> None:
        self.images, self.rows = images, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.images[self.rows[index]]


def share(dataset: Dataset, fraction: float) -> Dataset:
    """The data set with this share of the images of each class, at least one; a larger share contains a smaller one.

    Which ones depends on the data set's name and size and on the labels alone: it is the same for every network and seed.
    """
    if fraction == 1:
        return dataset
    assert dataset.labels is not None
    seed = hashlib.sha256(f"{dataset.name}/fraction/{len(dataset)}".encode()).digest()[:4]
    # RandomState, because numpy keeps its stream the same in every version.
    order = np.random.RandomState(int.from_bytes(seed)).permutation(len(dataset))
    kept: list[int] = []
    for label in np.unique(dataset.labels):
        own = order[dataset.labels[order] == label]
        kept += own[: max(1, round(fraction * len(own)))].tolist()
    rows = sorted(kept)
    clusters = None if dataset.clusters is None else dataset.clusters[rows]
    return replace(dataset, images=_Chosen(dataset.images, rows), labels=dataset.labels[rows], clusters=clusters)


def augment(group: Group, x: Tensor, generator: torch.Generator) -> Tensor:
    """Images (b, 3, h, w), each acted on by a random element of the group.

    Of a finite group each image draws its own element, uniformly. Of a continuous one each eighth of the batch draws one of
    the one-parameter groups exp(tX) and its t, uniformly from [-r, r] with r = `group.farthest`; values are not clipped.

    Args:
        generator: on the CPU, so that what is drawn does not depend on the device.
    """
    if isinstance(group, FiniteGroup):
        return act(group, x, torch.randint(len(group.elements()), (len(x),), generator=generator))
    assert isinstance(group, LieGroup)
    names, moved = group.generators(), []
    for part in x.tensor_split(min(PARTS, len(x))):
        name = names[int(torch.randint(len(names), (), generator=generator))]
        t = (2 * float(torch.rand((), dtype=torch.float64, generator=generator)) - 1) * group.farthest(
            name, x.shape[-1]
        )
        moved.append(group.filled(part, (name, t)))
    return torch.cat(moved)


def check(group: Group, size: int) -> None:
    """Refuse a group that does not act on images of `size` px.

    Raises:
        Misfit: says why not.
    """
    blank = torch.zeros(1, 3, size, size)
    if isinstance(group, FiniteGroup):
        act(group, blank.expand(len(group.elements()), -1, -1, -1), torch.arange(len(group.elements())))
    elif isinstance(group, LieGroup):
        for name in group.generators():
            group.filled(group.velocity(blank, name), (name, group.farthest(name, size)))


def act(group: FiniteGroup, x: Tensor, drawn: Tensor) -> Tensor:
    """Images (b, 3, h, w), the i-th acted on by element number drawn[i] of the group."""
    y = x.clone()
    for number, element in enumerate(group.elements()):
        rows = (drawn == number).nonzero()[:, 0].to(x.device)
        y[rows] = group.act(x[rows], element)
    return y
