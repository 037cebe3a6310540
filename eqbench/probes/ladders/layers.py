"""Every layer of a network over the generators of a finite group: one pass over the images, a row a layer."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eqbench.errors import Unsupported, UserError, one_line
from eqbench.features import Kind, Taps
from eqbench.groups import FiniteGroup
from eqbench.metrics.ladder import LADDER
from eqbench.probes.base import Subject
from eqbench.probes.ladders.ladder import CHANCE, COMPARED, RUNGS, Ladder
from eqbench.probes.ladders.similarity import unrelated
from eqbench.results import Layer, Measure
from eqbench.schema import Orbit
from eqbench.stats import Array, Statistic, intervals

FEWEST = 8  # images, and batches below which an interval over batches says nothing
CONSTANT = "the layer is the same for every image"
NO_MAPS = "no layer that was measured is a map"
VAGUE = "too few images: the estimate of HSIC is not positive"
SMALL = f"needs batches of at least {COMPARED} held-out images"


def measure(subject: Subject, group: FiniteGroup, size: int, conf: Orbit) -> tuple[list[Layer], dict[str, Measure]]:
    """Every layer's metrics, and the network's: means over its maps.

    The pass fills the subject's memory of logits for the identity and the generators.

    Args:
        size: of the images, pixels.

    Raises:
        Unsupported: too few independent images; or the network's output is no logits.
    """
    if subject.n < FEWEST or not 2 <= subject.fitted.sum() <= subject.n - 2:
        raise Unsupported(f"{subject.n} images: layers need at least {FEWEST}, not all of which depend on each other")
    with torch.no_grad():
        taps = Taps(subject.network, next(iter(subject.batches(size)))[:2].to(subject.device))
    rows = [Layer(name, 0.0, coverage=0.0, reason=reason) for name, reason in taps.refused.items()]
    ladders: list[Ladder] = []
    measured: list[Layer] = []
    for layer in taps.layers:
        rows.append(row := Layer(layer.name, layer.depth, layer.shape))
        try:
            ladders.append(Ladder(layer, group, size, conf.ridge, subject.device))
            measured.append(row)
        except (Unsupported, UserError) as error:
            row.coverage, row.reason = 0.0, one_line(error)
    coverage = {"layer_coverage": Measure(len(measured) / len(rows), n=len(rows))}
    if not ladders:
        return rows, coverage | {m.name: Measure(None, reason=NO_MAPS) for m in LADDER if m.name not in coverage}
    climb(subject, group, size, taps, ladders)
    columns = errors(subject, ladders, conf.resamples) | similarities(ladders, conf.resamples) | variances(ladders)
    for i, row in enumerate(measured):
        row.metrics = {name: column[i] for name, column in columns.items()}
    return rows, {name: column[-1] for name, column in columns.items()} | coverage


def climb(subject: Subject, group: FiniteGroup, size: int, taps: Taps, ladders: Sequence[Ladder]) -> None:
    """Pass the images through the network once an element, and every map by its ladder."""
    identity, *_ = elements = [group.elements()[0], *group.generators()]
    order, half = subject.order, int(subject.fitted.sum())
    start = 0

    def after(g: Any) -> None:
        nonlocal start
        for ladder in ladders:
            if g == identity and start == half:
                ladder.solve()
            ladder.take(maps[ladder.layer.name], None if g == identity else g, start)
        if g != elements[-1]:
            return
        batch = order[start : start + len(maps["logits"])]
        pairs = [torch.from_numpy(places).to(subject.device) for places in strangers(batch, subject.clusters)]
        for ladder in ladders:
            (ladder.fit if start < half else ladder.test)(*pairs)
        start += len(batch)

    with taps.recording() as maps:
        subject.logits(size, group, elements, after)


def strangers(
    images: NDArray[np.int64], clusters: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of images of a batch that do not belong together: each with the one some places on, unless of its cluster.

    Args:
        images: (B,), which images they are. clusters: of all images.

    Returns:
        (left, right): (P,) places in the batch each, for the shift that gives most pairs, of these the one nearest to half
            the batch; empty for one image.
    """
    places = np.arange(len(images))
    cluster = images if clusters is None else clusters[images]
    shifts = sorted(range(1, len(places)), key=lambda shift: abs(shift - len(places) / 2)) or [0]
    best = max((np.roll(places, -shift) for shift in shifts), key=lambda right: int((cluster != cluster[right]).sum()))
    apart = cluster != cluster[best]
    return places[apart], best[apart]


def errors(subject: Subject, ladders: Sequence[Ladder], resamples: int) -> dict[str, list[Measure]]:
    """The error of each rung, for every layer and then for the network.

    e = [ mean_g sum_x |b - rung(a)|^2 / sum_x |b - mean b|^2 ]^(1/2), the sums over the held-out images.
    """
    held_out = subject.order[int(subject.fitted.sum()) :]
    clusters = None if subject.clusters is None else subject.clusters[held_out]
    sums, chance = _stacked([ladder.errors for ladder in ladders], 1 + len(RUNGS))

    def each(total: Array) -> Array:
        return np.sqrt((total[..., 1:] / total[..., :1]).mean(2))

    numbers = _numbers(ladders, each, sums, chance, resamples, clusters)
    return {f"layer_error_{rung}": _column(ladders, numbers[..., i], len(held_out)) for i, rung in enumerate(RUNGS)}


def similarities(ladders: Sequence[Ladder], resamples: int) -> dict[str, list[Measure]]:
    """Debiased linear CKA of f(x) and R_g^-1 f(gx), for every layer and then for the network; intervals over batches.

    CKA = mean_g sum HSIC_1(a, b) / [ sum HSIC_1(a, a) sum HSIC_1(b, b) ]^(1/2), the sums over batches (Nguyen et al. 2021).
    """
    sums, chance = _stacked([ladder.hsic for ladder in ladders], 3)
    batches = sums.shape[-1]
    if not batches:
        return {"layer_cka": [Measure(None, reason=SMALL)] * (len(ladders) + 1)}

    def each(total: Array) -> Array:
        return (total[..., :1] / np.sqrt(total[..., 1:2] * total[..., 2:])).mean(2)

    numbers = _numbers(ladders, each, sums, chance, resamples)
    if batches < FEWEST:
        numbers[1:3] = np.nan
    return {"layer_cka": _column(ladders, numbers[..., 0], batches, VAGUE)}


def variances(ladders: Sequence[Ladder]) -> dict[str, list[Measure]]:
    """Normalised variance of f(gx), and of R_g^-1 f(gx), for every layer and then for the network."""
    found = np.array([[(float(ladder.moved.value()), float(ladder.pulled.value())) for ladder in ladders]])
    numbers = np.full((4, len(ladders) + 1, 2), np.nan)
    numbers[0] = _with_mean(found, ladders)[0]
    numbers[3] = unrelated(1 + len(ladders[0].generators))
    n = ladders[0].moved.count
    names = ("layer_variance", "layer_variance_same")
    return {name: _column(ladders, numbers[..., i], n) for i, name in enumerate(names)}


def _stacked(found: Sequence[dict[Any, list[Tensor]]], parts: int) -> tuple[Array, Array]:
    """(layers, generators, parts, units) of the generators, and of chance."""

    def joined(some: list[Tensor]) -> Array:
        return torch.cat(some, 1).cpu().numpy() if some else np.zeros((parts, 0))

    own = [[joined(some) for g, some in each.items() if g != CHANCE] for each in found]
    return np.array(own), np.array([[joined(each[CHANCE])] for each in found])


def _numbers(
    ladders: Sequence[Ladder],
    each: Callable[[Array], Array],
    sums: Array,
    chance: Array,
    resamples: int,
    clusters: NDArray[np.int64] | None = None,
) -> Array:
    """Value, ends of the interval, and null: (4, layers + 1, k), the network's last.

    Args:
        each: maps totals (B, layers, generators, parts) to (B, layers, k). sums, chance: as `_stacked` gives them.
    """

    def statistic(sums: Array) -> Statistic:
        flat = sums.reshape(math.prod(sums.shape[:-1]), sums.shape[-1]).T
        return lambda w: _with_mean(each((w @ flat).reshape(len(w), *sums.shape[:-1])), ladders).reshape(len(w), -1)

    found = intervals(statistic(sums), sums.shape[-1], resamples, clusters)
    with np.errstate(invalid="ignore", divide="ignore"):
        null = statistic(chance)(np.ones((1, chance.shape[-1])))[0]
    return np.stack([*found, null]).reshape(4, len(ladders) + 1, -1)


def _with_mean(each: Array, ladders: Sequence[Ladder]) -> Array:
    """(B, layers, k) without the constant layers, and the mean over the others that are maps: (B, layers + 1, k)."""
    constant = np.array([ladder.constant for ladder in ladders])
    maps = np.array([ladder.layer.kind is Kind.map for ladder in ladders])
    each = np.where(constant[:, None], np.nan, each)
    with np.errstate(invalid="ignore"):
        mean = np.nansum(each[:, maps], 1, keepdims=True) / np.isfinite(each[:, maps]).sum(1, keepdims=True)
    return np.concatenate([each, mean], 1)


def _column(ladders: Sequence[Ladder], numbers: Array, n: int, vague: str = "not finite") -> list[Measure]:
    """One metric of every layer and of the network, from its (4, layers + 1) numbers."""
    reasons = [*(CONSTANT if ladder.constant else vague for ladder in ladders), NO_MAPS]
    return [
        Measure(value, lo, hi, n, null=null, reason=None if np.isfinite(value) else reason)
        for value, lo, hi, null, reason in zip(*numbers, reasons, strict=True)
    ]
