"""What the landscape is measured on under a group: images, their orbits under one element, and a network's canonical form."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eqbench.curvature.objective import Objective
from eqbench.errors import Unsupported
from eqbench.groups import FiniteGroup
from eqbench.probes.base import Subject, check_labels, forward_each
from eqbench.probes.landscape.group_action import canonical
from eqbench.probes.landscape.losses import image_losses
from eqbench.schema import GroupLandscape
from eqbench.stats import Array

FEWEST = 4  # blocks of two or more images, over which gradients are resampled


@dataclass
class Scene:
    """Images in blocks, their orbits, and the network in its canonical form.

    Attributes:
        images: (n, 3, size, size), neighbours of a cluster together. labels: (n,).
        clusters: of the images, in this order. blocks: (start, end) of each.
        elements: g^0, g^1, ...: the powers of the generator.
    """

    network: nn.Module
    group: FiniteGroup
    elements: list[Any]
    images: Tensor
    labels: Tensor
    clusters: NDArray[np.int64] | None
    blocks: list[tuple[int, int]]
    micro_batch: int

    @classmethod
    def of(cls, subject: Subject, group: FiniteGroup, g: Any, size: int, conf: GroupLandscape) -> "Scene":
        images = torch.cat(list(subject.batches(size)))
        order = np.arange(len(images)) if subject.clusters is None else np.argsort(subject.clusters, kind="stable")
        images = images[torch.from_numpy(order)].to(subject.device)
        logits = torch.cat(forward_each(subject.network, images.split(conf.micro_batch), subject.device))
        subject.forwards += len(images)
        labels = logits.argmax(1) if subject.labels is None else subject.labels[torch.from_numpy(order)]
        check_labels(labels, logits.shape[1])
        elements = [group.elements()[0]]
        while (power := group.multiply(g, elements[-1])) != elements[0]:
            elements.append(power)
        cuts = np.linspace(0, len(images), min(conf.blocks, len(images) // 2) + 1).round().astype(int).tolist()
        clusters = None if subject.clusters is None else subject.clusters[order]
        blocks = list(pairwise(cuts))
        if len(blocks) < FEWEST:
            raise Unsupported(
                f"needs at least {2 * FEWEST} images for intervals over blocks of them, got {len(images)}"
            )
        network = canonical(subject.network, images[:2])
        return cls(network, group, elements, images, labels.to(subject.device), clusters, blocks, conf.micro_batch)

    @property
    def weights(self) -> Array:
        """How many images each block has."""
        return np.array([end - start for start, end in self.blocks], dtype=np.float64)

    def objective(self, count: int, first: int = 0, network: nn.Module | None = None) -> Objective:
        """The mean loss over `count` powers of g, from the `first` on, of every image."""
        images, labels = [], []
        for g in self.elements[first : first + count]:
            images.append(self.group.act(self.images, g))
            labels.append(self.labels)
        x, y = torch.stack(images, 1).flatten(0, 1), torch.stack(labels, 1).flatten()  # an orbit stays together
        parts = max(1, math.ceil(len(x) / self.micro_batch))
        chunks = zip(x.tensor_split(parts), y.tensor_split(parts), strict=True)
        return Objective(network or self.network, list(chunks))

    def orbit(self, network: nn.Module | None = None) -> Objective:
        """The mean loss over the orbits {g^k x}, which Q leaves alone."""
        return self.objective(len(self.elements), 0, network)

    def gradients(self, objective: Objective) -> Tensor:
        """The gradients of the mean loss over each block, moved by each power of g: (powers, blocks, size)."""
        found = []
        for g in self.elements:
            x = self.group.act(self.images, g)
            losses = (objective.loss(objective.logits(x[a:b]), self.labels[a:b]) for a, b in self.blocks)
            rows = [torch.autograd.grad(loss, objective.parameters, materialize_grads=True) for loss in losses]
            found.append(torch.stack([objective.flat(row) for row in rows]))
        return torch.stack(found)

    def losses(self, orbit: Objective, theta: Tensor | None = None) -> Array:
        """The loss of each image, the mean over its orbit: (n,)."""
        return self.orbit_means(image_losses(orbit, theta))

    def orbit_means(self, losses: Array) -> Array:
        """Losses (..., images of all orbits), the mean over each orbit: (..., n)."""
        means: Array = losses.reshape(*losses.shape[:-1], -1, len(self.elements)).mean(-1)
        return means
