"""Equivariance over a finite group's orbit: lattice error, symmetry loss share, placebo gap, consistency; and every layer.

All metrics of the output are ratios of sums over images, so each keeps per-image statistics and its interval comes from
one paired bootstrap. The same statistics on the symmetrised twin are the floors.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eqbench import ensembles
from eqbench.errors import Unsupported
from eqbench.groups import FiniteGroup
from eqbench.groups.twin import ALIGNED, reset_batch_norm, symmetrise
from eqbench.metrics import METRICS
from eqbench.metrics.ladder import LADDER
from eqbench.probes.base import Finding, Subject, another, check_labels, check_logits, log_mean_exp, mean_entropy
from eqbench.probes.ladders import layers
from eqbench.results import Layer, Measure
from eqbench.schema import Orbit
from eqbench.stats import Array, Statistic, at_ones, bootstrap, replicates

SYMMETRISABLE = 1e-2  # a twin that errs more than this at every size is no twin: its numbers are no floors
UNDEFINED = dict.fromkeys(("lattice_error", "lattice_error_aligned"), "the logits are the same for every image")
UNDEFINED |= {"kappa": "all images are in one class: nothing is left to agree on beyond chance"}


def run(subject: Subject, group: FiniteGroup, placebo: FiniteGroup | None, conf: Orbit) -> Finding:
    """Measure one network on one group.

    Raises:
        Unsupported: fewer classes or images than a metric needs.
        Failed: logits that are not finite.
    """
    native = subject.size
    x = next(iter(subject.batches(native))).to(subject.device)[:2]
    with torch.no_grad():
        check_logits(subject.network(x), x)
    aligned, search, note = _aligned(subject, group, conf)
    rows, layered = _layers(subject, group, aligned, conf) if conf.layers else ([], {})
    orbit = subject.logits(native, group, group.elements())
    if min(orbit[0].shape) < 2:
        raise Unsupported(f"logits {tuple(orbit[0].shape)}: an orbit needs at least two images and two classes")
    if subject.labels is not None:
        check_labels(subject.labels, orbit[0].shape[1])
    at_aligned = orbit if aligned == native else subject.logits(aligned, group, group.elements())
    placebo_orbit = subject.logits(native, placebo, placebo.elements()) if placebo else None

    statistics = orbit_statistics(orbit, subject.labels)
    statistics["lattice_error_aligned"] = lattice_error(at_aligned)
    nulls = _nulls(orbit, at_aligned, subject)
    if placebo_orbit is not None:
        fake = shares(placebo_orbit, subject.labels) | spreads(placebo_orbit)
        name = "js_share" if subject.labels is None else "symmetry_share"
        theirs, ours = fake[name], statistics[name]
        statistics["placebo_gap"] = lambda w: theirs(w) - ours(w)
        nulls |= fake | {"placebo_gap": lambda w: np.zeros(len(w))}
    floors = _floors(subject, group, native, aligned, conf.floor_images) if search < SYMMETRISABLE else {}

    metrics = {"aligned_size": Measure(aligned, n=4) if search < math.inf else Measure(None, reason=note)}
    for name, statistic in statistics.items():
        value, lo, hi = bootstrap(statistic, subject.n, conf.resamples, subject.clusters)
        null = at_ones(nulls[name], subject.n) if name in nulls else None
        reason = None if math.isfinite(value) else UNDEFINED.get(name)
        kept = replicates(statistic, subject.n, subject.clusters) if METRICS[name].replicated else {}
        metrics[name] = Measure(value, lo, hi, subject.n, floor=floors.get(name), null=null, reason=reason, **kept)
    metrics |= layered
    if note:
        for name in ("lattice_error_aligned", *(name for name in layered if layered[name].value is not None)):
            metrics[name].reason = note
    by_element = [at_ones(lattice_error([orbit[0], y]), subject.n) for y in orbit[1:]]
    return Finding(metrics, {"lattice_error_by_element": by_element}, rows)


def _aligned(subject: Subject, group: FiniteGroup, conf: Orbit) -> tuple[int, float, str | None]:
    """The aligned size, the twin's error there, and what is wrong with it, if anything."""
    try:
        size, error = subject.aligned(group, conf.aligned_below, conf.aligned_above)
    except Unsupported as refusal:
        return subject.size, math.inf, f"no aligned size: {refusal}"
    note = f"no aligned size near {subject.size} px: the twin's own error is at least {error:.2g}"
    return size, error, None if error < ALIGNED else note


def _layers(subject: Subject, group: FiniteGroup, size: int, conf: Orbit) -> tuple[list[Layer], dict[str, Measure]]:
    """`layers.measure`, or why there is none."""
    try:
        return layers.measure(subject, group, size, conf)
    except Unsupported as refusal:
        return [], {metric.name: Measure(None, reason=str(refusal)) for metric in LADDER}


def orbit_statistics(orbit: Sequence[Tensor], labels: Tensor | None) -> dict[str, Statistic]:
    """Each metric of one orbit as a function of weights on the images.

    Args:
        orbit: f(gx) for each g, the identity first: float64 (n, classes) each. labels: (n,) class indices, or None.
    """
    found = {"lattice_error": lattice_error(orbit), **agreement(orbit), **shares(orbit, labels), **spreads(orbit)}
    return found if labels is None else found | accuracies(orbit, labels)


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
        spread = np.where(spread > 1e-14 * (still**2).sum(), spread, np.nan)
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
    return {"js_share": lambda w: 1 - (w @ within) / (w @ whole)}


def spreads(orbit: Sequence[Tensor]) -> dict[str, Statistic]:
    """Mean distance of the predictions p(gx) from their mean over the orbit: G-EED (Kvinge et al. 2022, NeurIPS).

    By Kullback-Leibler divergence, which makes it the generalised Jensen-Shannon divergence; by 1 - cosine; Euclidean.
    """
    log_p = torch.stack(list(orbit)).log_softmax(-1)
    mixed = log_mean_exp(log_p)
    p, centre = log_p.exp(), mixed.exp()
    return {
        "js_divergence": _mean((mean_entropy(mixed) - mean_entropy(log_p).mean(0)) / math.log(2)),
        "orbit_cosine": _mean(1 - nn.functional.cosine_similarity(p, centre, dim=-1).mean(0)),
        "orbit_distance": _mean((p - centre).norm(dim=-1).mean(0)),
    }


def agreement(orbit: Sequence[Tensor]) -> dict[str, Statistic]:
    """Top-1 consistency with the untransformed image, and Cohen's kappa: (C - chance) / (1 - chance)."""
    top = classes(orbit)
    kept = ensembles.hits([top])
    return {"consistency": lambda w: (w @ kept) / w.sum(1), "kappa": ensembles.kappa([top])}


def classes(orbit: Sequence[Tensor]) -> NDArray[np.int64]:
    """The predicted classes: (elements, n)."""
    return torch.stack(list(orbit)).argmax(-1).numpy()


def accuracies(orbit: Sequence[Tensor], labels: Tensor) -> dict[str, Statistic]:
    """Top-1 accuracy of the images, and over the whole orbit."""
    right = (torch.stack(list(orbit)).argmax(-1) == labels).double().numpy()
    return {
        "accuracy": lambda w: (w @ right[0]) / w.sum(1),
        "orbit_accuracy": lambda w: (w @ right.mean(0)) / w.sum(1),
    }


def _mean(each: Tensor) -> Statistic:
    values = each.numpy()
    return lambda w: (w @ values) / w.sum(1)


def _nulls(orbit: Sequence[Tensor], at_aligned: Sequence[Tensor], subject: Subject) -> dict[str, Statistic]:
    """What chance reaches: shuffled pairs, chance agreement, the most frequent class."""
    other, labels = another(subject.n, subject.clusters), subject.labels
    nulls = {
        "lattice_error": lattice_error([orbit[0], *(moved[other] for moved in orbit[1:])]),
        "lattice_error_aligned": lattice_error([at_aligned[0], *(moved[other] for moved in at_aligned[1:])]),
        "consistency": ensembles.chance([classes(orbit)]),
        "kappa": lambda w: np.zeros(len(w)),
    }
    if labels is not None:
        most = float(labels.bincount().max() / len(labels))
        nulls |= dict.fromkeys(("accuracy", "orbit_accuracy"), lambda w: np.full(len(w), most))
    return nulls


def _floors(subject: Subject, group: FiniteGroup, native: int, aligned: int, images: int) -> dict[str, float]:
    """The metrics of the symmetrised twin, on the first images, at the native and at the aligned size."""
    found: dict[str, float] = {}
    for size in dict.fromkeys((native, aligned)):
        twin = _twin_subject(subject, group, size, images)
        orbit = twin.logits(size, group, group.elements())
        if size == native:
            own = orbit_statistics(orbit, twin.labels)
            found |= {name: at_ones(own[name], twin.n) for name in own if METRICS[name].floor}
        found["lattice_error_aligned"] = at_ones(lattice_error(orbit), twin.n)
    return found


def _twin_subject(subject: Subject, group: FiniteGroup, size: int, images: int) -> Subject:
    """The network's symmetrised twin on the first images, its batch-norm statistics taken on those same images."""
    first: list[Tensor] = []
    for x in subject.batches(size):
        first.append(x[: images - sum(map(len, first))].to(subject.device))
        if sum(map(len, first)) >= images:
            break
    x = torch.cat(first)
    twin = symmetrise(subject.network, group)
    reset_batch_norm(twin, [x])
    labels = None if subject.labels is None else subject.labels[:images]
    return Subject(twin, size, lambda _: [x], len(x), labels)
