"""The Lie derivative of the logits and of every layer along each generator of a group.

L_X f = J v_X - v_X(f): how f(exp(tX) x) departs from exp(tX) f(x), at t = 0. On what has no positions (logits, vectors,
prefix tokens), and for groups of colours, v_X(f) = 0. It is read against J u for directions u of the spectrum of v_X that
are no symmetry. All generators count alike whatever their units: L_X and v_X are scaled to |v_X| = 1, image by image, and
images are weighted by the mean of |v_X|^2.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from eqbench.errors import Unsupported
from eqbench.features import Kind, Taps
from eqbench.features import Layer as Tapped
from eqbench.groups import Group, LieGroup
from eqbench.probes.base import Finding, Subject, check_logits
from eqbench.probes.derivatives import compat
from eqbench.probes.derivatives.attribution import blocks, contributions, cuts
from eqbench.probes.derivatives.directions import Velocities, blurred, controls
from eqbench.probes.derivatives.tally import Tally, tally
from eqbench.probes.derivatives.tangents import Jacobian
from eqbench.results import Layer, Measure
from eqbench.schema import Lie
from eqbench.stats import Array, bootstrap, intervals, replicates

UNIFORM = 0.9  # share of the energy of v_X that is the same for all pixels, from which on its controls are itself
TOLERANCE = {True: 1e-2, False: 0.2}  # of the check of cuts: by forward mode, by central differences
ROUNDING = 1e-9  # a Lie ratio of the logits that is float32's
NO_CONTROL = "the directions are nearly the same colour for all pixels: none of the same spectrum is another direction"
INSENSITIVE = 1e-10  # |Ju|^2 |x|^2 / |u|^2 |f|^2, below which a response is rounding
SILENT = "neither these directions nor others of their spectrum and colours change it, but for rounding"
NO_ERROR = "the logits do not change in these directions, but for rounding: there is no error to attribute"
NO_CUT = "not all of the error passes through this layer: it counts with the next that all passes through"


def run(subject: Subject, group: LieGroup, placebo: Group | None, conf: Lie) -> Finding:
    """Measure one network along every generator of one group.

    Raises:
        Unsupported: the output is no logits, or the group does not change these images.
        Failed: derivatives that are not finite.
    """
    if conf.compat:
        return compat.run(subject, group, conf)
    x = next(iter(subject.batches(subject.size)))[:2].to(subject.device)
    with torch.no_grad():
        check_logits(subject.network(x), x)
        taps = Taps(subject.network, x)
    refused = taps.refused | {layer.name: why for layer in taps.layers if (why := _refusal(layer, group))}
    layers = [layer for layer in taps.layers if layer.name not in refused]
    jacobian = Jacobian(subject.network, taps)
    smooth = blurred(x, conf.sigma)
    jacobian.choose(smooth, controls(smooth[None], 0, 1)[0])
    velocities = Velocities(group, subject.size)
    sums = tally(subject, velocities, jacobian, layers, conf)
    subject.forwards += jacobian.forwards
    if not sums.speed.any():
        raise Unsupported(f"group '{group.name}' does not change these images")

    measures, curves = _ratios(subject, layers, sums, conf)
    classes = taps.layers[-1].shape[0]
    metrics = _network(subject, velocities, classes, sums, conf) | measures.pop("")
    shares, probing = _shares(subject, layers, sums, conf, jacobian.note is None)
    rows = [Layer(name, 0.0, coverage=0.0, reason=why) for name, why in taps.refused.items()]
    for layer in taps.layers:
        why = refused.get(layer.name)
        found = measures.get(layer.name, {}) | shares.get(layer.name, {})
        rows.append(Layer(layer.name, layer.depth, layer.shape, float(why is None), why, found))
    if jacobian.note:
        for measure in metrics.values():
            measure.reason = measure.reason or jacobian.note
    metrics["lie_coverage"] = Measure(len(layers) / len(rows), n=len(rows))
    curves |= _by_generator(velocities, sums, classes) | probing | {"method": [jacobian.method]}
    return Finding(metrics, curves, rows, jvps=jacobian.jvps)


def _refusal(layer: Tapped, group: LieGroup) -> str | None:
    if not group.spatial or layer.kind is not Kind.map or min(layer.shape[1:]) >= 3:
        return None
    return f"{layer.shape[1]} x {layer.shape[2]} cells have no interior on which to differentiate"


def _weights(speed: Array) -> tuple[Array, Array]:
    """The weight of each image over |v_X|^2, (G, n), 0 where a generator does not change the image; the weights, (n,)."""
    weight = speed.mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(speed > 1e-12 * weight.max(), weight / speed, 0.0), weight


def _ratios(
    subject: Subject, layers: Sequence[Tapped], sums: Tally, conf: Lie
) -> tuple[dict[str, dict[str, Measure]], dict[str, list[float]]]:
    """R = sum_X |L_X f|^2 / (E_u |Ju|^2 + sum_X |v_X(f)|^2) of every layer; under "" those of the network."""
    scale, weight = _weights(sums.speed)
    above = (scale * sums.error).sum(2)
    below = weight * sums.control + (scale * sums.moved).sum(2)
    with np.errstate(divide="ignore", invalid="ignore"):
        response = np.nanmean(below[:, 1] / (sums.speed > 0).sum(0) / weight, 1) / np.nanmean(sums.level, 1)
        whole = above[:, 1].sum(-1) / below[:, 1].sum(-1)
    alive = response > INSENSITIVE
    below[~alive] = np.nan
    measured = [i for i, layer in enumerate(layers) if alive[i]]
    maps = [i for i in measured if layers[i].kind is Kind.map] or measured

    def statistics(w: Array) -> Array:
        each = (w @ above[:, 0].T) / (w @ below[:, 0].T)
        return np.concatenate([each, each[:, maps].mean(1, keepdims=True)], 1)

    values, lo, hi = intervals(statistics, subject.n, conf.resamples, subject.clusters)
    uniform = float(sums.uniform.sum() / sums.speed.sum())

    def measure(i: int, **kept: Any) -> Measure:
        if uniform > UNIFORM or not math.isfinite(values[i]):
            return Measure(None, reason=NO_CONTROL if uniform > UNIFORM else SILENT)
        return Measure(values[i], lo[i], hi[i], subject.n, null=1.0, **kept)

    found = {layer.name: {"layer_lie_ratio": measure(i)} for i, layer in enumerate(layers)}
    kept = replicates(lambda w: (w @ above[-1, 0]) / (w @ below[-1, 0]), subject.n, subject.clusters)
    found[""] = {"lie_ratio": measure(len(layers) - 1, **kept), "layer_lie_ratio": measure(len(layers))}
    return found, {"layer_lie_ratio_whole": whole.tolist(), "uniform_share": [uniform]}


def _network(subject: Subject, velocities: Velocities, classes: int, sums: Tally, conf: Lie) -> dict[str, Measure]:
    """Raw errors of the logits and of the probabilities, with their controls' as nulls, and the sharpening part."""
    unit = classes * velocities.displacement()[:, None]
    each = sums.speed / unit / np.maximum((sums.speed > 0).sum(0), 1)  # |v_X|^2 / |u|^2
    errors = {"lie_logits": (sums.error[-1, 0], sums.control[-1, 0])}
    errors["lie_probabilities"] = (sums.probabilities[:-1], sums.probabilities[-1])
    means = np.stack([(error / unit).mean(0) for error, _ in errors.values()], 1)
    values, lo, hi = intervals(
        lambda w: (w @ means) / w.sum(1, keepdims=True), subject.n, conf.resamples, subject.clusters
    )
    found = {}
    for i, (name, (_, control)) in enumerate(errors.items()):
        found[name] = Measure(values[i], lo[i], hi[i], subject.n, null=float((each * control).mean()))
    if sums.sharp is None:
        found["sharpness_share"] = Measure(None, reason="the group moves no pixels")
        return found
    straight, even = (_weights(sums.sharp[2])[0] * sums.sharp[:2]).sum(1)
    value, low, high = bootstrap(lambda w: (w @ even) / (w @ (even + straight)), *_first(subject, len(even), conf))
    found["sharpness_share"] = Measure(value, low, high, len(even), reason=None if math.isfinite(value) else SILENT)
    return found


def _first(subject: Subject, count: int, conf: Lie) -> tuple[int, int, Any]:
    """What a bootstrap over the first images takes."""
    return count, conf.resamples, None if subject.clusters is None else subject.clusters[:count]


def _shares(
    subject: Subject, layers: Sequence[Tapped], sums: Tally, conf: Lie, forward: bool
) -> tuple[dict[str, dict[str, Measure]], dict[str, list[float]]]:
    """The share of every cut in the sum of contributions; for curves, the standard error from random probes, and the sum."""
    if not sums.chain:
        return {}, {}
    names = [parts[-1] for parts in blocks([layer.name for layer in layers]).values()]
    rows = cuts(sums.chain, TOLERANCE[forward])
    images = sum(one.kept.shape[-1] for one in sums.chain)
    scale, weight = _weights(sums.speed[:, :images])
    squared = (scale * sums.error[-1, 0, :, :images]).sum()
    if squared <= ROUNDING * (weight * sums.control[-1, 0, :images]).sum():
        return {name: {"layer_lie_share": Measure(None, reason=NO_ERROR)} for name in names}, {}
    mean, variance = contributions(sums.chain, rows)
    each = (scale * mean).sum(1)
    values, lo, hi = intervals(lambda w: (w @ each.T) / (w @ each.sum(0))[:, None], *_first(subject, images, conf))
    found = {name: {"layer_lie_share": Measure(None, reason=NO_CUT)} for name in names}
    for i, row in enumerate(rows):
        found[names[row]] = {"layer_lie_share": Measure(values[i], lo[i], hi[i], images)}
    total = each.sum()
    error = np.sqrt((scale**2 * variance).sum((1, 2))) / total
    return found, {"layer_lie_share_probe_error": error.tolist(), "contributions_over_error": [float(total / squared)]}


def _by_generator(velocities: Velocities, sums: Tally, classes: int) -> dict[str, list[Any]]:
    """What each generator has by itself, in the order of `generators`; raw errors a unit of its own t."""
    error, control = sums.error[-1, 0], sums.control[-1, 0] / np.maximum((sums.speed > 0).sum(0), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: dict[str, list[Any]] = {
            "generators": list(velocities.generators),
            "lie_ratio_by_generator": (error.sum(1) / (sums.speed * control).sum(1)).tolist(),
            "lie_logits_by_generator": (error.mean(1) / classes).tolist(),
            "lie_probabilities_by_generator": (sums.probabilities[:-1].mean(1) / classes).tolist(),
        }
        if sums.sharp is not None:
            straight, even = sums.sharp[:2].sum(2)
            found["sharpness_share_by_generator"] = (even / (even + straight)).tolist()
    return found
