"""Equivariant circuits: families of units that a group exchanges, and the symmetry of the weights between them.

Symmetry is in the weights where W[g i, g k] is W[i, k] moved by g (Olah et al. 2020, Distill); which unit g i is, is found
in the activations. A random twin of the architecture, measured in the same way, is the null of every number.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from eqbench.errors import Unsupported
from eqbench.groups import FiniteGroup
from eqbench.groups.lattice import HALF_TURN, LatticeGroup
from eqbench.groups.twin import blank, reset_batch_norm
from eqbench.models import Network
from eqbench.probes.base import Finding, Subject
from eqbench.probes.circuitry import pictures
from eqbench.probes.circuitry.graph import Graph, Port, Weight, entries, fitting
from eqbench.probes.circuitry.halves import Halves, first, split
from eqbench.probes.circuitry.numbers import Strand, census_strands, families_of, measures, shares, weight_strands
from eqbench.probes.circuitry.trace import trace
from eqbench.probes.circuitry.units import QUANTILE, Census, Units, match_units, take_census
from eqbench.probes.circuitry.weights import (
    Products,
    applied_weights,
    head_products,
    layer_products,
    same_on_kernels,
)
from eqbench.results import Layer, Measure
from eqbench.schema import Circuits
from eqbench.stats import bootstrap


def run(subject: Subject, group: FiniteGroup, placebo: FiniteGroup | None, conf: Circuits) -> Finding:
    """Measure one network under one group.

    The curves are `census`, for each layer the shares of units that are `fixed`, in a `pair`, in an `orbit4` of four, in an
    `other` family or `unmatched`; and those of `circuitry.pictures`.

    Raises:
        Unsupported: no layer can be read, or the group moves the cells of none.
        Failed: activations that are not finite.
    """
    size = _aligned(subject, group, conf)
    halves = split(subject, size)
    few = [first(half, conf.null_images // 2, subject.device) for half in halves]
    twin = blank(subject.network)
    reset_batch_norm(twin, [torch.cat(few[0])])  # at once: batches of one image have no variance
    graph = fitting(trace(twin, few[0][0][:2]), group, size)
    alike = placebo is not None and same_on_kernels(group, placebo)
    other = None if alike else placebo

    x = few[0][0][:2]
    chance = read(twin, graph, few, x, group, other)
    own = read(subject.network, graph, halves, x, group, other, chance.units)
    generators = len(group.generators()) + (len(other.generators()) if other else 0)
    subject.forwards += 2 * subject.n * generators
    found = _summarise(graph, group, own, chance, subject.n, conf.resamples)
    if alike and placebo is not None:
        reason = f"{placebo.name} moves kernels as {group.name} does, so it is no placebo of weights"
        found.metrics["weight_gap"] = Measure(None, reason=reason)
    _show(found, subject, graph, group, own, halves[1], conf)
    if isinstance(group, LatticeGroup) and HALF_TURN in group.elements():
        found.metrics["hue_rotation"] = _hue_rotation(subject, graph, twin, halves, few, conf)
    return found


def _aligned(subject: Subject, group: FiniteGroup, conf: Circuits) -> int:
    """The size at which the architecture's own grid is symmetric; the native one if it has no twin."""
    try:
        return subject.aligned(group, conf.aligned_below, conf.aligned_above)[0]
    except Unsupported:
        return subject.size


@dataclass
class Reading:
    """What is read of one network.

    Attributes:
        units: of each generator. weights: as they are applied.
        written, given: families of a layer's outputs, and of its inputs.
        products, placebo: of each generator, two of each for heads; none where kernels of a layer have no action.
    """

    units: list[Units]
    weights: dict[Weight, Tensor]
    written: dict[str, Census]
    given: dict[str, Census]
    products: dict[str, list[Products]]
    placebo: dict[str, list[Products]]


def read(
    network: nn.Module,
    graph: Graph,
    halves: Halves,
    x: Tensor,
    group: FiniteGroup,
    placebo: FiniteGroup | None,
    chance: Sequence[Units] = (),
) -> Reading:
    """Match the units of a network, take their census, compare its weights.

    Args:
        x: any images, (B, 3, n, n). chance: units of the random twin, of each generator; none: this is it.
    """
    weights = applied_weights(network, graph, x)
    known: Sequence[dict[Port, float] | None] = [one.thresholds for one in chance] or [None] * len(group.generators())
    units = [
        match_units(network, graph, halves, group, g, thresholds)
        for g, thresholds in zip(group.generators(), known, strict=True)
    ]
    written = {name: take_census(group, units, one.writes, one.target) for name, one, _ in entries(graph)}
    readers = {name: one if heads is None else heads.qkv for name, one, heads in entries(graph)}
    given = {
        name: take_census(group, units, one.reads, one.source) for name, one in readers.items() if not one.reads.image
    }
    products = _products(network, graph, weights, units, group)
    others = [match_units(network, graph, halves, placebo, g) for g in placebo.generators()] if placebo else []
    fake = _products(network, graph, weights, others, placebo) if placebo else {}
    return Reading(units, weights, written, given, products, fake)


def _products(
    network: nn.Module, graph: Graph, weights: dict[Weight, Tensor], units: Sequence[Units], group: FiniteGroup
) -> dict[str, list[Products]]:
    std = network.std.double().cpu() if isinstance(network, Network) else torch.ones(3, 1, 1, dtype=torch.float64)
    found: dict[str, list[Products]] = {}
    for name, one, heads in entries(graph):
        found[name] = []
        for g, own in zip(group.generators(), units, strict=True):
            if heads is None:
                products = layer_products(weights[one], one, own, group, g, std)
                found[name] += [products] if products else []
            else:
                qkv, proj = (weights[w].flatten(1) for w in (heads.qkv, heads.proj))
                found[name] += head_products(qkv, proj, heads, own)
    return found


def _strands(
    graph: Graph, group: FiniteGroup, one: Reading, touched: dict[Weight, int]
) -> dict[str, dict[str, Strand]]:
    """Metric -> layer -> its statistic."""
    found: dict[str, dict[str, Strand]] = {}
    order = len(group.elements())
    for name, weight, heads in entries(graph):
        parameters = touched[weight] if heads is None else touched[heads.qkv] + touched[heads.proj]
        owner = families_of(one.written[name], order) if heads is None else np.arange(heads.heads)
        strands = weight_strands(one.products[name], one.placebo.get(name, []), owner, parameters)
        strands |= census_strands(one.written[name], one.given.get(name), parameters, order)
        for metric, strand in strands.items():
            found.setdefault(metric, {})[name] = strand
    return found


def _summarise(graph: Graph, group: FiniteGroup, own: Reading, chance: Reading, images: int, count: int) -> Finding:
    """All metrics, of the network and of its layers, with the twin's as null."""
    layers = {
        name: Layer(name, one.depth, (one.target.layout.channels, *(one.target.layout.grid or ())))
        for name, one, _ in entries(graph)
    }
    touched = {one: int((weight != 0).sum()) for one, weight in chance.weights.items()}  # random: only padding is 0
    found = Finding({}, layers=list(layers.values()))
    nulls = _strands(graph, group, chance, touched)
    for metric, strands in _strands(graph, group, own, touched).items():
        found.metrics[metric], each = measures(strands, nulls[metric], images, count)
        for name, measure in each.items():
            layers[name].metrics[metric] = measure
    found.curves["census"] = [
        {"layer": name, "depth": round(one.depth, 4)} | shares(own.written[name]) for name, one in layers.items()
    ]
    found.layers += [Layer(name, 0.0, coverage=0.0, reason=reason) for name, reason in graph.refused.items()]
    return found


def _show(
    found: Finding,
    subject: Subject,
    graph: Graph,
    group: FiniteGroup,
    own: Reading,
    batches: Iterable[Tensor],
    conf: Circuits,
) -> None:
    """Add the pictures: the first generator's families in the first layers with maps."""
    g, units = group.generators()[0], own.units[0]
    maps = [one for one in graph.weights if one.target.layout.grid != (1, 1)][: pictures.LAYERS]
    strongest = {one: pictures.families(group, g, one, units) for one in maps}
    for one in maps:
        if one.reads.image and one.shape[-1] > 1:
            found.curves["filters"] = pictures.filters(strongest[one], own.weights[one])
    if conf.tuning_images and maps:
        x = torch.cat(first(batches, conf.tuning_images, subject.device))
        responses = pictures.turned_responses(subject.network, [one.target for one in maps], x)
        subject.forwards += len(x) * pictures.ANGLES
        mirrored = isinstance(group, LatticeGroup) and g.mirrored
        found.curves["tuning"] = [
            curve for one in maps for curve in pictures.tuning(strongest[one], responses[one.target.module], mirrored)
        ]


def _hue_rotation(
    subject: Subject,
    graph: Graph,
    twin: nn.Module,
    halves: Halves,
    few: Halves,
    conf: Circuits,
) -> Measure:
    """The share of first-layer units that hue and half turn leave together, but neither alone, beyond the twin's."""
    first = next((one for one in graph.weights if one.reads.image), None)
    if first is None:
        return Measure(None, reason="no layer reads the image itself")
    own, chance = pictures.twist(subject.network, first, halves[0]), pictures.twist(twin, first, few[0])
    if own is None or chance is None:
        return Measure(None, reason="the images have no colour")
    twisted = (own > chance.quantile(QUANTILE)).double().numpy()
    value = bootstrap(lambda w: (w @ twisted) / w.sum(1), len(twisted), conf.resamples)
    return Measure(*value, n=subject.n, null=float((chance > chance.quantile(QUANTILE)).double().mean()))
