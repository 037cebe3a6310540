"""S4, S8, S13: one channel larger where it is written, smaller where it is read; and C0, where that changes the function."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from eqbench.symmetries.dataflow import Dataflow, Node
from eqbench.symmetries.transformations import Symmetry, Weights

NORMS = ("batch_norm", "layer_norm", "group_norm", "rms_norm")
SPREAD = 0.5  # standard deviation of the random exponents


@dataclass(eq=False)
class Layer:
    """How a layer's weights take part: the class of each of its output and of each of its input channels, 0 for none.

    Attributes:
        writes: (out,). reads: (groups, in / groups), or (in,) of a factor a channel; None where it reads no class.
    """

    node: Node
    writes: Tensor
    reads: Tensor | None

    def exponent(self, a: Tensor, shape: torch.Size) -> Tensor:
        """Logarithm of what the weight's entries are multiplied by, for exponents a a class: a[writes] - a[reads]."""
        rows = a[self.writes]
        if self.node.kind != "linear":
            if self.node.kind == "parameter":
                return rows.view([-1 if d == self.node.axis % len(shape) else 1 for d in range(len(shape))])
            return (rows if self.reads is None else rows - a[self.reads]).view(shape)
        whole = rows[:, None]
        if self.reads is not None:
            whole = whole - a[self.reads].repeat_interleave(len(rows) // len(self.reads), 0)
        return whole.view(*whole.shape, *[1] * (len(shape) - 2))


@dataclass(eq=False)
class Rescaling:
    """Channels that one layer (or several, by additions) writes, each of which may be rescaled: the classes of an instance."""

    family: str
    name: str
    classes: Tensor
    layers: list[Layer]
    size: int  # of all classes of the network

    @property
    def unit(self) -> Tensor:
        """Every channel alike, (classes,)."""
        return torch.ones(len(self.classes), dtype=torch.float64)

    def curve(self, exponents: Tensor) -> "Symmetry":
        """T_t: entries times exp(t (a_write - a_read)), for exponents (classes,)."""
        a = self._spread(exponents)

        def curve(theta: Weights, t: Tensor) -> Weights:
            moved: Weights = {}
            for layer in self.layers:
                node = layer.node
                assert node.weight is not None
                weight = theta[node.weight]
                moved[node.weight] = weight * torch.exp(t * layer.exponent(a, weight.shape).to(weight))
                if node.bias is not None and bool(a[layer.writes].any()):
                    moved[node.bias] = theta[node.bias] * torch.exp(t * a[layer.writes].to(weight))
            return moved

        names = tuple(n for layer in self.layers for n in (layer.node.weight, layer.node.bias) if n)
        return Symmetry(self.family, self.name, curve, names, origin=self, c=exponents)

    def direction(self, theta: Weights, exponents: Tensor) -> Weights:
        """K: entries times a_write - a_read."""
        a, moved = self._spread(exponents.cpu()), dict[str, Tensor]()
        for layer in self.layers:
            node = layer.node
            assert node.weight is not None
            weight = theta[node.weight]
            moved[node.weight] = weight * layer.exponent(a, weight.shape).to(weight)
            if node.bias is not None:
                moved[node.bias] = theta[node.bias] * a[layer.writes].to(weight)
        return moved

    def _spread(self, exponents: Tensor) -> Tensor:
        """(size,), zero outside the instance's classes."""
        return torch.zeros(self.size, dtype=torch.float64).index_copy(0, self.classes, exponents.double())


def find(flow: Dataflow) -> list[Rescaling]:
    """Every set of channels whose writers and readers could be rescaled against each other."""
    classes = _classes(flow)
    family, blocked = _families(flow, classes)
    allowed = torch.from_numpy(np.where(blocked, 0, classes))
    layers = list(_layers(flow, allowed))
    writers: dict[int, list[Node]] = {}
    for layer in layers:
        for one in layer.writes.unique().tolist():
            writers.setdefault(one, []).append(layer.node)
    groups: dict[tuple[str, tuple[Node, ...]], list[int]] = {}
    for one, writing in sorted(writers.items()):
        if one:
            groups.setdefault((_family(family.get(one, set()), writing), tuple(writing)), []).append(one)
    found = []
    for (kind, nodes), members in groups.items():
        touched = [
            layer for layer in layers
            if layer.node in nodes or (layer.reads is not None and bool(np.isin(layer.reads.numpy(), members).any()))
        ]  # fmt: skip
        if any(layer.reads is not None and bool(np.isin(layer.reads.numpy(), members).any()) for layer in touched):
            found.append(Rescaling(kind, nodes[0].name, torch.tensor(members), touched, int(classes.max()) + 1))
    return found


def random(instance: Rescaling, source: torch.Generator) -> Symmetry:
    """A random element: exponents N(0, SPREAD^2)."""
    return instance.curve(SPREAD * torch.randn(len(instance.classes), generator=source, dtype=torch.float64))


def _family(flags: set[str], writers: list[Node]) -> str:
    if "bent" in flags:
        return "C0"
    if "times" in flags:
        return "S13"
    return "S4" if "relu" not in flags and all(node.kind in NORMS for node in writers) else "S8"


def _classes(flow: Dataflow) -> NDArray[np.int64]:
    """A class for every code: channels that meet in one column of a reader share it; 0 is that of no channel."""
    last = flow.nodes[-1]
    size = last.start + last.channels
    pairs = []
    for use in (*flow.uses, flow.logits):
        if use.node.kind != "opaque" and len(use.codes) > 1:
            top = use.codes.amax(0).expand_as(use.codes)
            meeting = (use.codes > 0) & (use.codes != top)
            pairs.append(torch.stack([use.codes[meeting], top[meeting]]))
    ties = torch.cat(pairs, 1).numpy() if pairs else np.zeros((2, 0), np.int64)
    edges = coo_array((np.ones(ties.shape[1]), (ties[0], ties[1])), shape=(size, size))
    labels = connected_components(edges, directed=False)[1].astype(np.int64)
    return np.where(labels == labels[0], 0, labels + 1)


def _families(flow: Dataflow, classes: NDArray[np.int64]) -> tuple[dict[int, set[str]], NDArray[np.bool_]]:
    """The flags of each class, and for each code whether its class cannot be rescaled."""
    bad: set[int] = {0}
    flags: dict[int, set[str]] = {}
    for node in flow.nodes:
        scalable = node.weight is not None and (node.kind in (*NORMS, "scale", "parameter", "linear"))
        if not scalable or node.bias_codes is not None:
            bad |= set(classes[node.start : node.start + node.channels].tolist())
    for use in (*flow.uses, flow.logits):
        for codes, flag in zip(use.codes, use.flags, strict=True):
            own = set(classes[codes.numpy()].tolist())
            if use.node.kind in (*NORMS, "opaque") or "attention" in flag:
                bad |= own
            extra = flag | ({"times"} if use.node.kind == "scale" else set())
            for one in own if extra else ():
                flags.setdefault(one, set()).update(extra)
    return flags, np.isin(classes, sorted(bad))


def _layers(flow: Dataflow, allowed: Tensor) -> Iterator[Layer]:
    given = {use.node: use for use in flow.uses}
    for node in flow.nodes:
        if node.weight is None or node.kind == "opaque":
            continue
        reads = None
        if node.kind in ("linear", "scale") and node in given and len(given[node].codes):
            columns = allowed[given[node].codes.amax(0)]
            reads = columns.view(node.groups, -1) if node.kind == "linear" else columns
            reads = reads if bool(reads.any()) else None
        writes = allowed[node.start : node.start + node.channels]
        if bool(writes.any()) or reads is not None:
            yield Layer(node, writes, reads)
