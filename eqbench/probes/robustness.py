"""Accuracy on shifted, rotated, noisy and attacked images, beside that on the same images untouched.

Every accuracy is a mean over images, so one bootstrap on the same resamples gives all intervals, those of drops paired.
What shifts and turns bring in from beyond the border is the image mirrored at it.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial

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


class Shifted:
    """Images moved by (dy, dx) px, mirrored at the border."""

    def act(self, x: Tensor, g: tuple[int, int], /) -> Tensor:
        reach, size = max(map(abs, g)), x.shape[-1]
        wide = torch.nn.functional.pad(x, [reach] * 4, mode="reflect")
        return crop(wide, reach - g[0], reach - g[1], size)


class Turned:
    """Images turned counter-clockwise by t rad about the centre, mirrored at the border."""

    def act(self, x: Tensor, t: float, /) -> Tensor:
        group = AFFINE["rotation"]
        assert isinstance(group, Linear)
        return group.filled(x, ("rotation", t)).clamp(0, 1)


def run(subject: Subject, group: None, placebo: Group | None, conf: Robustness) -> Finding:
    """Measure one network.

    Raises:
        Unsupported: the images have no labels, or are too small to shift.
        Failed: logits that are not finite.
    """
    if subject.labels is None:
        raise Unsupported("the images have no labels, and robustness is accuracy under change")
    labels, px = subject.labels, round(conf.shift * subject.size)
    if not px:
        raise Unsupported(
            f"images of {subject.size} px: a shift by {conf.shift:g} of the side is less than half a pixel"
        )
    plain = torch.cat(forward_each(subject.network, subject.batches(subject.size), subject.device))
    subject.forwards += subject.n
    check_labels(labels, plain.shape[1])
    clean = _right([plain], labels)
    turns = [math.radians(part * conf.rotation) for part in (-1, -0.5, 0.5, 1)]
    right = {
        "shift": _right(
            subject.logits(subject.size, Shifted(), [(y, x) for y in (-px, px) for x in (-px, px)]), labels
        ),
        "rotation": _right(subject.logits(subject.size, Turned(), turns), labels),
    }
    right |= {f"noise_{size}": noisy(subject, labels, sigma) for size, sigma in zip(NOISES, conf.noise, strict=True)}
    together: Array = np.sum([w * right[key] for key, w in CORRUPTIONS.items()], 0)
    standing = clean
    for size, eps in zip(ATTACKS, conf.pgd_eps, strict=True):  # ascending: what fell to a weaker attack has fallen
        standing = strongest(subject, labels, plain.shape[1], standing, eps / 255, conf.pgd_steps)
        right[f"pgd_{size}"] = standing

    each = {"clean_accuracy": clean}
    for key, own in ({"corruption": together} | right).items():
        each |= {f"{key}_accuracy": own, f"{key}_drop": clean - own}
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
    return _right([torch.cat(rows)], labels)


def _right(logits: Sequence[Tensor], labels: Tensor) -> Array:
    """How often each image is classed rightly, (n,), from the logits of each of its versions."""
    return torch.stack([one.argmax(-1) == labels for one in logits]).double().mean(0).numpy()
