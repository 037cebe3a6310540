"""Accuracy on shifted, rotated, noisy and attacked images, beside that on the same images untouched.

Every accuracy is a mean over images, so one bootstrap on the same resamples gives all intervals, those of drops paired.
What shifts and turns are compared with is seen as they are: through a window of the same larger image, or the same disc.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from eqbench.errors import Unsupported
from eqbench.groups import Group
from eqbench.groups.affine import GROUPS as AFFINE
from eqbench.groups.affine import Linear
from eqbench.groups.translation import crop
from eqbench.metrics import METRICS
from eqbench.probes.attack import strongest
from eqbench.probes.base import Finding, Subject, check_labels, forward_each
from eqbench.probes.stability import white
from eqbench.results import Measure
from eqbench.schema import Robustness
from eqbench.stats import Array, Statistic, intervals, replicates

NOISES = ("weak", "medium", "strong")
ATTACKS = ("weak", "strong")
CORRUPTIONS = {"shift": 1 / 3, "rotation": 1 / 3} | {f"noise_{size}": 1 / 9 for size in NOISES}  # weights of the mean


class Pair(NamedTuple):
    """How often each image is classed rightly, in [0, 1], (n,) each: what is compared with, and under the change."""

    still: Array
    moved: Array


class Window(NamedTuple):
    """Where a window of `size` px lies in a larger image."""

    dy: int
    dx: int
    size: int


class Windowing:
    """Images as a window shows them."""

    def act(self, x: Tensor, g: Window, /) -> Tensor:
        return crop(x, *g)


def run(subject: Subject, group: None, placebo: Group | None, conf: Robustness) -> Finding:
    """Measure one network.

    Raises:
        Unsupported: the images have no labels, or are too small to shift.
        Failed: logits that are not finite.
    """
    if subject.labels is None:
        raise Unsupported("the images have no labels, and robustness is accuracy under change")
    labels = subject.labels
    plain = torch.cat(forward_each(subject.network, subject.batches(subject.size), subject.device))
    subject.forwards += subject.n
    check_labels(labels, plain.shape[1])
    clean = _right(plain, labels)
    pairs = {"shift": shifted(subject, labels, conf.shift), "rotation": turned(subject, labels, conf.rotation)}
    for size, sigma in zip(NOISES, conf.noise, strict=True):
        pairs[f"noise_{size}"] = Pair(clean, noisy(subject, labels, sigma))
    standing = clean
    for size, eps in zip(ATTACKS, conf.pgd_eps, strict=True):  # ascending: what fell to a weaker attack has fallen
        standing = strongest(subject, labels, plain.shape[1], standing, eps / 255, conf.pgd_steps)
        pairs[f"pgd_{size}"] = Pair(clean, standing)

    together = Pair(*(np.sum([w * pairs[key][i] for key, w in CORRUPTIONS.items()], 0) for i in (0, 1)))
    each = {"clean_accuracy": clean}
    for key, pair in ({"corruption": together} | pairs).items():
        each |= {f"{key}_accuracy": pair.moved, f"{key}_drop": pair.still - pair.moved}
    columns = np.stack(list(each.values()), 1)

    def means(w: Array) -> Array:
        return (w @ columns) / w.sum(1, keepdims=True)

    found = intervals(means, subject.n, conf.resamples, subject.clusters)
    most = int(labels.bincount().max()) / len(labels)
    metrics = {}
    for i, (name, value, lo, hi) in enumerate(zip(each, *found, strict=True)):
        kept = replicates(partial(_column, means, i), subject.n, subject.clusters) if METRICS[name].replicated else {}
        null = 0.0 if name.endswith("_drop") else most
        metrics[name] = Measure(value, lo, hi, subject.n, null=null, **kept)
    return Finding(metrics)


def _column(statistics: Statistic, i: int, w: Array) -> Array:
    return statistics(w)[:, i]


def shifted(subject: Subject, labels: Tensor, share: float) -> Pair:
    """Windows at the four corners of an image that is `share` of the side larger on each side, against the middle one.

    Raises:
        Unsupported: that is less than a pixel.
    """
    size = subject.size
    m = round(share * size)
    if not m:
        raise Unsupported(f"images of {size} px: a shift by {share:g} of the side is less than half a pixel")
    places = [Window(m, m, size), *(Window(dy, dx, size) for dy in (0, 2 * m) for dx in (0, 2 * m))]
    still, *moved = (_right(y, labels) for y in subject.logits(size + 2 * m, Windowing(), places))
    return Pair(still, np.mean(moved, 0))


def turned(subject: Subject, labels: Tensor, degrees: float) -> Pair:
    """Turns by the multiples of 15 degrees up to `degrees`, both ways, against none behind the same disc."""
    group = AFFINE["rotation"]
    assert isinstance(group, Linear)
    full, most = 2 * math.pi, math.radians(degrees) + 1e-9
    angles = [t for t in group.sweep("rotation", subject.size) if min(t, full - t) <= most]
    rows = [_right(y, labels) for y in subject.logits(subject.size, group, [("rotation", t) for t in angles])]
    still = rows.pop(angles.index(0.0))
    return Pair(still, np.mean(rows, 0))


def noisy(subject: Subject, labels: Tensor, sigma: float) -> Array:
    """Right or not under white noise of standard deviation sigma, (n,); its direction depends on the image's place alone."""

    def images() -> Iterator[Tensor]:
        start = 0
        for batch in subject.batches(subject.size):
            x = batch.to(subject.device)
            yield (x + sigma * white(x, range(start, start + len(x)))).clamp(0, 1)
            start += len(x)

    rows = forward_each(subject.network, images(), subject.device)
    subject.forwards += subject.n
    return _right(torch.cat(rows), labels)


def _right(logits: Tensor, labels: Tensor) -> Array:
    return (logits.argmax(-1) == labels).double().numpy()
