"""Output equivariance over a finite group's orbit: lattice error, symmetry loss share, placebo gap, consistency.

All metrics are ratios of sums over images, so each keeps per-image statistics and its interval comes from one paired
bootstrap. The same statistics on the symmetrised twin are the floors.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eqbench.errors import Unsupported
from eqbench.groups import FiniteGroup
from eqbench.groups.twin import ALIGNED, reset_batch_norm, symmetrise
from eqbench.metrics import METRICS
from eqbench.probes.base import Subject, log_mean_exp, mean_entropy
from eqbench.results import Measure
from eqbench.schema import Orbit
from eqbench.stats import Array, Statistic, bootstrap


def run(
    subject: Subject, group: FiniteGroup, placebo: FiniteGroup | None, conf: Orbit
) -> tuple[dict[str, Measure], dict[str, list[Any]]]:
    """Measure one network on one group; returns (metrics, curves).

    Raises:
        Unsupported: fewer classes or images than a metric needs.
        Failed: logits that are not finite.
    """
    native = subject.size
    aligned, search = subject.aligned(group, conf.aligned_below, conf.aligned_above)
    statistics = orbit_statistics(subject, native, group, placebo)
    nulls = _nulls(subject, native, group, placebo, statistics)
    statistics["lattice_error_aligned"] = lattice_error(subject.logits(aligned, group, group.elements()))
    nulls["lattice_error_aligned"] = lattice_error(_shuffled(subject.logits(aligned, group, group.elements())))

    twins = {size: _twin_subject(subject, group, size, conf.floor_images) for size in {native, aligned}}
    floors = orbit_statistics(twins[native], native, group, None)
    floors["lattice_error_aligned"] = lattice_error(twins[aligned].logits(aligned, group, group.elements()))

    metrics = {}
    for name, statistic in statistics.items():
        value, lo, hi = bootstrap(statistic, subject.n, conf.resamples)
        metrics[name] = Measure(
            value,
            lo,
            hi,
            subject.n,
            floor=_at_ones(floors[name], conf.floor_images) if name in floors and METRICS[name].floor else None,
            null=_at_ones(nulls[name], subject.n) if name in nulls else None,
        )
    metrics["aligned_size"] = Measure(aligned, n=4)
    if not search < ALIGNED:
        metrics["lattice_error_aligned"].reason = f"no aligned size near {native} px: twin floor {search:.2g} at best"
    orbit = subject.logits(native, group, group.elements())
    by_element = [float(_at_ones(lattice_error([orbit[0], moved]), subject.n)) for moved in orbit[1:]]
    return metrics, {"lattice_error_by_element": by_element}


def orbit_statistics(
    subject: Subject, size: int, group: FiniteGroup, placebo: FiniteGroup | None
) -> dict[str, Statistic]:
    """Each metric as a function of weights on the images, at one input size."""
    orbit = subject.logits(size, group, group.elements())
    if orbit[0].shape[1] < 2 or len(orbit) < 2:
        raise Unsupported(f"{orbit[0].shape[1]} classes and {len(orbit)} group elements: an orbit needs two of each")
    found = {"lattice_error": lattice_error(orbit), **agreement(orbit)}
    share = shares(orbit, subject.labels)
    found |= share
    if subject.labels is not None:
        found |= accuracies(orbit, subject.labels)
    if placebo is not None:
        name = "js_share" if subject.labels is None else "symmetry_share"
        other = shares(subject.logits(size, placebo, placebo.elements()), subject.labels)[name]
        found["placebo_gap"] = lambda w: other(w) - share[name](w)
    return found


def lattice_error(orbit: Sequence[Tensor]) -> Statistic:
    """E_G = [ sum_x mean_{g != e} |f(gx) - f(x)|^2 / sum_x |f(x) - mean f|^2 ]^(1/2).

    Args:
        orbit: f(gx) for each g, the identity first: (n, classes) each.
    """
    still = orbit[0].numpy()
    # The weighted mean is subtracted by hand; centring first keeps that from cancelling large offsets.
    centred = still - still.mean(0)
    gap = np.mean([(moved.numpy() - still) ** 2 for moved in orbit[1:]], 0).sum(1)
    square = (centred**2).sum(1)

    def statistic(w: Array) -> Array:
        total = w.sum(1)
        spread = w @ square - ((w @ centred) ** 2).sum(1) / total
        # A spread at rounding level is no spread: the logits do not depend on the image.
        spread = np.where(spread > 1e-12 * (1 + (still**2).sum()), spread, np.nan)
        return np.sqrt((w @ gap) / spread)

    return statistic


def shares(orbit: Sequence[Tensor], labels: Tensor | None) -> dict[str, Statistic]:
    """The share of the loss (labels) or of the entropy (none) that averaging over the orbit removes.

    S_G = 1 - sum_x CE(mean_g p(gx), y) / sum_x mean_g CE(p(gx), y); without labels CE becomes the entropy, numerator and
    denominator change places, and S_G becomes the generalised Jensen-Shannon share.
    """
    log_p = torch.stack(list(orbit)).log_softmax(-1)
    mixed = log_mean_exp(log_p)
    if labels is not None:
        index = labels.view(-1, 1)
        each = -log_p.gather(-1, index.expand(len(orbit), -1, -1)).squeeze(-1).mean(0).numpy()
        mean = -mixed.gather(-1, index).squeeze(-1).numpy()
        return {"symmetry_share": lambda w: 1 - (w @ mean) / (w @ each)}
    within, whole = mean_entropy(log_p).mean(0).numpy(), mean_entropy(mixed).numpy()
    return {
        "js_share": lambda w: 1 - (w @ within) / (w @ whole),
        "js_divergence": lambda w: (w @ (whole - within)) / w.sum(1) / math.log(2),
    }


def agreement(orbit: Sequence[Tensor]) -> dict[str, Statistic]:
    """Top-1 consistency with the untransformed image, and Cohen's kappa: (C - chance) / (1 - chance)."""
    top = torch.stack(list(orbit)).argmax(-1)
    hits = (top[1:] == top[0]).double().mean(0).numpy()
    chance = chance_agreement(orbit)

    def consistency(w: Array) -> Array:
        return (w @ hits) / w.sum(1)

    def kappa(w: Array) -> Array:
        beyond = 1 - chance(w)  # 0 if there is one class everywhere: nothing left to agree on
        return np.where(beyond > 1e-12, (consistency(w) - 1 + beyond) / np.maximum(beyond, 1e-12), np.nan)

    return {"consistency": consistency, "kappa": kappa}


def chance_agreement(orbit: Sequence[Tensor]) -> Statistic:
    """sum_c P(c) P_g(c): the agreement of independent classifiers with the class frequencies of f(x) and of f(gx)."""
    classes, codes = torch.stack(list(orbit)).argmax(-1).unique(return_inverse=True)
    one_hot = nn.functional.one_hot(codes, len(classes)).double()
    still, moved = one_hot[0].numpy(), one_hot[1:].mean(0).numpy()

    def statistic(w: Array) -> Array:
        return ((w @ still) * (w @ moved)).sum(1) / w.sum(1) ** 2

    return statistic


def accuracies(orbit: Sequence[Tensor], labels: Tensor) -> dict[str, Statistic]:
    """Top-1 accuracy of the images, and over the whole orbit."""
    right = (torch.stack(list(orbit)).argmax(-1) == labels).double().numpy()
    return {
        "accuracy": lambda w: (w @ right[0]) / w.sum(1),
        "orbit_accuracy": lambda w: (w @ right.mean(0)) / w.sum(1),
    }


def _nulls(
    subject: Subject, size: int, group: FiniteGroup, placebo: FiniteGroup | None, statistics: dict[str, Statistic]
) -> dict[str, Statistic]:
    """What chance reaches: shuffled pairs, the placebo's share, chance agreement, the most frequent class."""
    orbit = subject.logits(size, group, group.elements())
    nulls: dict[str, Statistic] = {"lattice_error": lattice_error(_shuffled(orbit))}
    nulls |= {"consistency": chance_agreement(orbit)}
    nulls |= {"kappa": lambda w: np.zeros(len(w))}
    if placebo is not None:
        nulls |= shares(subject.logits(size, placebo, placebo.elements()), subject.labels)
        nulls |= {"placebo_gap": lambda w: np.zeros(len(w))}
    if subject.labels is not None:
        most = float(subject.labels.bincount().max() / len(subject.labels))
        nulls |= dict.fromkeys(("accuracy", "orbit_accuracy"), lambda w: np.full(len(w), most))
    return {name: null for name, null in nulls.items() if name in statistics}


def _shuffled(orbit: Sequence[Tensor]) -> list[Tensor]:
    """The orbit with every moved image replaced by another one's: a random cyclic order leaves none in place."""
    n = len(orbit[0])
    order = torch.from_numpy(np.random.default_rng(0).permutation(n))
    other = torch.empty_like(order)
    other[order] = order.roll(1)
    return [orbit[0]] + [moved[other] for moved in orbit[1:]]


def _twin_subject(subject: Subject, group: FiniteGroup, size: int, images: int) -> Subject:
    """The network's symmetrised twin on the first images, its batch-norm statistics taken on those same images."""
    first: list[Tensor] = []
    for x in subject.batches(size):
        first.append(x[: images - sum(map(len, first))].to(subject.device))
        if sum(map(len, first)) >= images:
            break
    twin = symmetrise(subject.network, group)
    reset_batch_norm(twin, first)
    labels = None if subject.labels is None else subject.labels[:images]
    return Subject(twin, size, lambda _: first, min(images, subject.n), labels)


def _at_ones(statistic: Statistic, n: int) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(statistic(np.ones((1, n)))[0])
