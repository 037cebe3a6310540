"""What a probe measures: a network and images, with every logit computed once."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eqbench.errors import Failed, Unsupported
from eqbench.groups import FiniteGroup, Group, get_finite
from eqbench.groups.twin import aligned_size
from eqbench.results import Layer, Measure

Batches = Callable[[int], Iterable[Tensor]]


class Action(Protocol):
    """Whatever acts on images by elements: a group, finite or not, or a protocol such as crops of a larger image."""

    def act(self, x: Tensor, g: Any, /) -> Tensor:
        """G x for images (B, 3, H, W)."""
        ...


@dataclass
class Finding:
    """What a probe found: a Result's metrics, layers and curves, and what it took beside forwards."""

    metrics: dict[str, Measure]
    curves: dict[str, list[Any]] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    jvps: int = 0
    hvps: int = 0


def unrecorded() -> dict[str, Any]:
    """The record of the training of a network in memory: there is none."""
    raise Unsupported("nothing was recorded of its training")


@dataclass
class Subject:
    """A network in evaluation mode and the images it is probed on.

    Attributes:
        network: maps images (B, 3, n, n) in [0, 1] to logits (B, classes).
        size: the network's native input size, pixels.
        batches: the images at a given size, in a fixed order, as batches in [0, 1].
        n: how many images there are. labels: (n,) class indices, or None.
        clusters: (n,), equal for images that depend on each other; None: all independent.
        others: loads other weights of the same architecture to compare with: `init`, or a seed's name.
        training: reads what was recorded while the network was trained; Unsupported where nothing was.
    """

    network: nn.Module
    size: int
    batches: Batches
    n: int
    labels: Tensor | None = None
    clusters: NDArray[np.int64] | None = None
    others: dict[str, Callable[[], nn.Module]] = field(default_factory=dict)
    training: Callable[[], dict[str, Any]] = unrecorded
    forwards: int = 0
    checked: bool = False  # whether the network is known to take the images and to give logits
    _logits: dict[tuple[int, Any], Tensor] = field(default_factory=dict)
    _aligned: dict[tuple[str, int, int], tuple[int, float]] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.network.parameters()), torch.device("cpu"))

    @cached_property
    def fitted(self) -> NDArray[np.bool_]:
        """The half of the images on which maps between features are fitted: (n,); the others are held out.

        Clusters stay whole; they go to the smaller half, the largest first, in a shuffled order that n alone decides.
        """
        names, owner, sizes = np.unique(
            np.arange(self.n) if self.clusters is None else self.clusters, return_inverse=True, return_counts=True
        )
        order = np.random.RandomState(0).permutation(len(names))
        chosen, total = np.zeros(len(names), bool), [0, 0]
        for cluster in order[np.argsort(-sizes[order], kind="stable")]:
            chosen[cluster] = total[1] <= total[0]
            total[int(chosen[cluster])] += int(sizes[cluster])
        return chosen[owner]

    @property
    def order(self) -> NDArray[np.int64]:
        """The images in the order of `halves`."""
        return np.argsort(~self.fitted, kind="stable")

    def halves(self, size: int) -> Iterator[Tensor]:
        """The images at a given size, the fitted half first, then the other; no batch spans both.

        Every pass takes them in this way, so that a logit does not depend on which pass computed it.
        """
        for half in (self.fitted, ~self.fitted):
            start, width, rest = 0, 0, torch.empty(0)
            for batch in self.batches(size):
                mine = batch[torch.from_numpy(half[start : start + len(batch)])]
                start, width, rest = (
                    start + len(batch),
                    width or len(batch),
                    torch.cat([rest, mine]) if len(rest) else mine,
                )
                while len(rest) >= width:
                    yield rest[:width]
                    rest = rest[width:]
            if len(rest):
                yield rest

    def logits(
        self, size: int, group: Action, elements: Sequence[Any], after: Callable[[Any], None] | None = None
    ) -> list[Tensor]:
        """f(gx) for each g of `elements`: (n, classes) each, computed in the network's dtype, as float64 on the CPU.

        One pass over the images serves all elements not seen yet; they are kept, so that groups that share elements
        share their forwards. Memory: n x classes numbers an element.

        Args:
            after: called with each element after each forward pass, in the order of `elements` and the images in that
                of `halves`; all elements are then computed, seen or not.
        """
        keys = {g: (size, group.key(g) if isinstance(group, Group) else g) for g in elements}
        missing = [g for g, key in keys.items() if after or key not in self._logits]
        if missing:
            rows = forward_orbit(self.network, self.halves(size), self.device, group, missing, after)
            self.forwards += self.n * len(missing)
            back = torch.from_numpy(np.argsort(self.order))
            self._logits.update({keys[g]: torch.cat(rows[g])[back] for g in missing})
        return [self._logits[keys[g]].double() for g in elements]

    def aligned(self, group: FiniteGroup, below: int, above: int) -> tuple[int, float]:
        """`twin.aligned_size` of this network, searched once a group."""
        key = (group.name, below, above)
        if key not in self._aligned:
            self._aligned[key] = aligned_size(self.network, group, self.size, below, above)
        return self._aligned[key]


@torch.no_grad()
def forward_orbit(
    network: nn.Module,
    batches: Iterable[Tensor],
    device: torch.device,
    group: Action,
    elements: Sequence[Any],
    after: Callable[[Any], None] | None = None,
) -> dict[Any, list[Tensor]]:
    """f(gx), batch by batch: element -> list of (B, classes) on the CPU; `after` as in `Subject.logits`.

    Raises:
        Unsupported: the output is not one vector of logits an image.
        Failed: a logit is not finite.
    """
    rows: dict[Any, list[Tensor]] = {g: [] for g in elements}
    for x in batches:
        x = x.to(device)
        for g in elements:
            y = check_logits(network(group.act(x, g)), x)
            if not y.isfinite().all():
                bad = int((~y.isfinite().all(1)).sum())
                raise Failed(f"logits of {bad} of {len(y)} images of a batch are not finite")
            rows[g].append(y.cpu())
            if after is not None:
                after(g)
    return rows


def forward_each(network: nn.Module, batches: Iterable[Tensor], device: torch.device) -> list[Tensor]:
    """f(x), batch by batch: (B, classes) each, on the CPU; raises as `forward_orbit`."""
    still = get_finite("none")
    return forward_orbit(network, batches, device, still, still.elements())[still.elements()[0]]


# What has a precision of float32 of its own.
FP32_BACKENDS: Any = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]


@contextmanager
def ieee() -> Iterator[None]:
    """IEEE float32 inside: no TF32 in matrix products or convolutions."""
    before = [backend.fp32_precision for backend in FP32_BACKENDS]
    for backend in FP32_BACKENDS:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, precision in zip(FP32_BACKENDS, before, strict=True):
            backend.fp32_precision = precision


def check_logits(y: Any, x: Tensor) -> Tensor:
    """The output y for images x, if it is one vector of logits an image.

    Raises:
        Unsupported: it is anything else; says what.
    """
    if not isinstance(y, Tensor) or y.ndim != 2 or len(y) != len(x):
        shape = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise Unsupported(f"the output for images {tuple(x.shape)} is {shape}: expected logits (B, classes)")
    return y


def check_labels(labels: Tensor, classes: int) -> None:
    """Refuse labels that the logits have no place for.

    Raises:
        Unsupported: names the largest label and the number of classes.
    """
    if int(labels.max()) >= classes:
        raise Unsupported(f"labels go up to {int(labels.max())}, and the network has {classes} logits")


def another(n: int, clusters: NDArray[np.int64] | None = None) -> Tensor:
    """For each of n images the index of another one, of another cluster where there are enough: a permutation, (n,).

    In a random cyclic order that keeps clusters together, a step of the largest one's size leaves every cluster that
    does not hold most of the images.

    >>> another(4, np.array([0, 0, 1, 1])).tolist()
    [3, 2, 1, 0]
    """
    order = np.random.RandomState(0).permutation(n)
    owners = np.arange(n) if clusters is None else clusters
    _, first, owner, sizes = np.unique(owners[order], return_index=True, return_inverse=True, return_counts=True)
    order = order[np.argsort(first[owner], kind="stable")]
    step = int(sizes.max())
    other = np.empty_like(order)
    other[order] = np.roll(order, step if step < n else 1)
    return torch.from_numpy(other)


def mean_entropy(log_p: Tensor) -> Tensor:
    """H(p) in nats along the last axis, from log-probabilities."""
    return -(log_p.exp() * log_p).sum(-1)


def log_mean_exp(log_p: Tensor) -> Tensor:
    """Log mean_g p_g over the first axis, from log-probabilities."""
    return log_p.logsumexp(0) - math.log(len(log_p))
