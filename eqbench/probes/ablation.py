"""Ablation: which channels carry the symmetry of the output, the equivariant ones or the others."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from eqbench.errors import Unsupported
from eqbench.groups import FiniteGroup
from eqbench.groups.twin import blank, reset_batch_norm
from eqbench.layouts import Layout
from eqbench.models import Network
from eqbench.probes.base import Finding, Subject, check_labels, forward_orbit
from eqbench.probes.circuitry.graph import Port, entries, fitting
from eqbench.probes.circuitry.halves import first, split
from eqbench.probes.circuitry.trace import trace
from eqbench.probes.circuitry.units import match_units
from eqbench.probes.orbit import accuracies, shares
from eqbench.results import Measure
from eqbench.schema import Ablation
from eqbench.stats import Statistic, bootstrap

TRACED = 32  # images on which the random twin, whose streams of channels are traced, has its batch norm set
Rule = Callable[[Tensor, int], Tensor]  # scores (C,) and how many: the indices chosen


def run(subject: Subject, group: FiniteGroup, placebo: FiniteGroup | None, conf: Ablation) -> Finding:
    """Zero a share of every layer's channels at once, chosen by how equivariant they are, and measure the orbit again.

    The curve `by_layer` has, for layers zeroed alone on the first images, the least, quartiles and largest `score` of their
    channels, and the metrics' changes without the `least`, the `most` equivariant or `random` ones.

    Raises:
        Unsupported: no layer can be matched, or there are fewer classes or images than a share needs.
        Failed: logits or activations that are not finite.
    """
    intact = subject.logits(subject.size, group, group.elements())
    if min(intact[0].shape) < 2:
        raise Unsupported(f"logits {tuple(intact[0].shape)}: an orbit needs at least two images and two classes")
    if subject.labels is not None:
        check_labels(subject.labels, intact[0].shape[1])
    layers = score(subject, group)
    rules: dict[str, Rule] = {"least": least, "most": most} | {f"{i}": drawn(i) for i in range(conf.draws)}

    def changes(layers: list[Scored], rule: Rule, images: int) -> dict[str, Statistic]:
        chosen = [(one.port, rule(one.score, one.count(conf.percent))) for one in layers]
        with zeroed(subject.network, chosen):
            rows = forward_orbit(subject.network, _first(subject, images), subject.device, group, group.elements())
        subject.forwards += images * len(group.elements())
        after = [torch.cat(rows[g]).double() for g in group.elements()]
        labels = None if subject.labels is None else subject.labels[:images]
        return compare(after, [y[:images] for y in intact], labels)

    found = {name: changes(layers, rule, subject.n) for name, rule in rules.items()}
    metrics = {}
    for name in found["least"]:
        null = float(np.mean([at_ones(found[f"{i}"][name], subject.n) for i in range(conf.draws)]))
        for kind in ("least", "most"):
            value = bootstrap(found[kind][name], subject.n, conf.resamples, subject.clusters)
            metrics[f"{kind}_{name}"] = Measure(*value, n=subject.n, null=null)
    curve = []
    few = min(conf.layer_images, subject.n)
    for one in spread(layers, conf.layers if few else 0):
        row = {"layer": one.name, "depth": round(one.depth, 4), "score": [round(q, 4) for q in one.quantiles()]}
        for kind, rule in (("least", least), ("most", most), ("random", drawn(0))):
            row[kind] = {name: round(at_ones(change, few), 6) for name, change in changes([one], rule, few).items()}
        curve.append(row)
    return Finding(metrics, {"by_layer": curve})


@dataclass
class Scored:
    """How equivariant the channels of a layer's output are: (C,), NaN for those that are the same everywhere.

    The score of a channel is the least, over the generators, of its correlation with its best partner (circuits).
    """

    name: str
    depth: float
    port: Port
    score: Tensor

    def count(self, percent: float) -> int:
        """So many per cent of the channels that can be told apart; at least one."""
        alive = int(self.score.isfinite().sum())
        return min(alive, max(1, round(percent / 100 * alive)))

    def quantiles(self) -> list[float]:
        """Least, quartiles and largest of the scores."""
        return [float(q) for q in self.score.nanquantile(torch.linspace(0, 1, 5, dtype=self.score.dtype))]


def score(subject: Subject, group: FiniteGroup) -> list[Scored]:
    """The channels of all layers but the logits: 2 forwards an image and generator.

    Raises:
        Unsupported: no layer can be matched.
    """
    halves = split(subject, subject.size)
    twin = blank(subject.network)
    x = first(halves[0], TRACED, subject.device)
    reset_batch_norm(twin, [torch.cat(x)])
    graph = fitting(trace(twin, x[0][:2]), group, subject.size)
    units = [match_units(subject.network, graph, halves, group, g) for g in group.generators()]
    subject.forwards += 2 * subject.n * len(units)
    found = []
    for name, one, _ in entries(graph):
        if not one.writes.logits:
            alive = torch.stack([each.alive[one.target][0] for each in units]).any(0)
            held = torch.stack([each.held[one.target] for each in units]).amin(0)
            found.append(Scored(name, one.depth, one.target, held.where(alive, torch.nan)))
    found = [one for one in found if one.score.isfinite().any()]
    if not found:
        raise Unsupported("no layer but the logits can be matched")
    return found


def least(score: Tensor, count: int) -> Tensor:
    """The channels of the lowest scores."""
    return score.nan_to_num(torch.inf).argsort(stable=True)[:count]


def most(score: Tensor, count: int) -> Tensor:
    """The channels of the highest scores."""
    return score.nan_to_num(-torch.inf).argsort(descending=True, stable=True)[:count]


def drawn(seed: int) -> Rule:
    """Random channels, others in each layer that the rule is asked for."""
    generator = torch.Generator().manual_seed(seed)

    def rule(score: Tensor, count: int) -> Tensor:
        alive = score.isfinite().nonzero()[:, 0]
        return alive[torch.randperm(len(alive), generator=generator)[:count]]

    return rule


@contextmanager
def zeroed(network: nn.Module, chosen: list[tuple[Port, Tensor]]) -> Iterator[None]:
    """Inside, these channels of these layers' outputs are 0, at all positions and prefix tokens."""
    inner = network.module if isinstance(network, Network) else network

    def hook(layout: Layout, channels: Tensor) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def after(module: nn.Module, args: object, y: Tensor) -> Tensor:
            axis = 1 if layout.axes in ("NCHW", "NCL", "NC") else y.ndim - 1
            return y.index_fill(axis, channels.to(y.device), 0.0)

        return after

    with ExitStack() as stack:
        for port, channels in chosen:
            handle = inner.get_submodule(port.module).register_forward_hook(hook(port.layout, channels))
            stack.callback(handle.remove)
        yield


def compare(after: list[Tensor], before: list[Tensor], labels: Tensor | None) -> dict[str, Statistic]:
    """Changes of the symmetry share and the accuracy; without labels of the JS share, and the agreement of top classes.

    Args:
        after, before: f(gx) for each g, the identity first: float64 (n, classes) each.
    """
    name = "js_share" if labels is None else "symmetry_share"
    found = {"share_change": _less(shares(after, labels)[name], shares(before, labels)[name])}
    if labels is not None:
        right, was = (accuracies(orbit, labels)["accuracy"] for orbit in (after, before))
        return found | {"accuracy_change": _less(right, was)}
    same = (after[0].argmax(1) == before[0].argmax(1)).double().numpy()
    return found | {"agreement": lambda w: (w @ same) / w.sum(1)}


def _less(a: Statistic, b: Statistic) -> Statistic:
    return lambda w: a(w) - b(w)


def at_ones(statistic: Statistic, n: int) -> float:
    """A statistic of n images, each once."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(statistic(np.ones((1, n)))[0])


def spread(layers: list[Scored], count: int) -> list[Scored]:
    """At most `count` of the layers, at even distances, the first and the last among them."""
    places = np.linspace(0, len(layers) - 1, min(count, len(layers))).round().astype(int)
    return [layers[i] for i in dict.fromkeys(places.tolist())]


def _first(subject: Subject, images: int) -> Iterator[Tensor]:
    """The first images, in the data's order."""
    done = 0
    for x in subject.batches(subject.size):
        if done < images:
            yield x[: images - done]
        done += len(x)
