"""S5, S10: a translation of what a norm (or attention's values) adds, undone by the next bias; a batch norm's affine gauge."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from eqbench.symmetries.attention import bias_parts
from eqbench.symmetries.dataflow import Dataflow, Node, Use, owners
from eqbench.symmetries.transformations import Symmetry, Weights

SPREAD = 0.5  # standard deviation of random exponents and translations


def bias_translations(flow: Dataflow, source: torch.Generator) -> Iterator[Symmetry]:
    """S5: beta + t tau where channels are written, b - t W tau in every layer that reads them.

    The readers are linear layers, or convolutions without padding, that have a bias; attention hands a constant on, since
    its weights sum to one.
    """
    good = _translatable(flow)
    for node in flow.nodes:
        own = good[node.start : node.start + node.channels]
        if node.bias is None or node.kind == "opaque" or not bool(own.any()):
            continue
        tau = torch.zeros(len(good), dtype=torch.float64)
        tau[node.start : node.start + node.channels] = (
            SPREAD * torch.randn(node.channels, generator=source, dtype=torch.float64) * own
        )
        readers = [use for use, i in flow.uses_of(node) if bool(good[use.codes[i]].any())]
        yield _translation(flow, node, readers, tau)


def _translation(flow: Dataflow, node: Node, readers: list[Use], tau: Tensor) -> Symmetry:
    parts = {use: bias_parts(flow, use.node, torch.arange(use.node.channels)) for use in readers}

    def curve(theta: Weights, t: Tensor) -> Weights:
        assert node.bias is not None
        moved = {node.bias: theta[node.bias] + t * tau[node.start : node.start + node.channels].to(t)}
        for use in readers:
            assert use.node.weight is not None
            weight = theta[use.node.weight]
            shifted = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
            lost = t * (shifted @ tau[use.codes[0]].to(t))
            for name, there, here in parts[use]:
                moved[name] = moved.get(name, theta[name]).index_add(0, there.to(t.device), -lost[here])
        return moved

    names = [
        node.bias or "",
        *(n for use in readers for n in (use.node.weight or "", *(name for name, _, _ in parts[use]))),
    ]
    return Symmetry("S5", node.name, curve, tuple(names))


def _translatable(flow: Dataflow) -> Tensor:
    """For each code, whether all that is done with its channel is to be read by layers whose bias can take a constant up."""
    last = flow.nodes[-1]
    good = torch.zeros(last.start + last.channels, dtype=torch.bool)
    bad = good.clone()
    for use in (*flow.uses, flow.logits):
        node = use.node
        able = node.kind == "linear" and node.groups == 1 and not node.padded and len(use.codes) == 1
        able &= node.bias is not None or node.bias_codes is not None
        for codes, flags in zip(use.codes, use.flags, strict=True):
            (good if able and flags <= {"attention"} else bad)[codes] = True
    return good & ~bad


def batch_norm_gauge(flow: Dataflow, statistics: Weights, source: torch.Generator) -> Iterator[Symmetry]:
    """S10: W_c s, b_c s, gamma_c / s, beta_c + gamma_c mu_c (1/s - 1) / sigma_c with s = exp(t a_c), at fixed mu and sigma."""
    for use, a in _normalised(flow, source):
        node = use.node
        if node.statistics is None or node.weight is None or node.bias is None:
            continue
        mean, variance = (statistics[name].double() for name in node.statistics)
        ratio, columns = mean / (variance + node.eps).sqrt(), a[use.codes[0]]

        def curve(
            theta: Weights, t: Tensor, node: Node = node, a: Tensor = a, ratio: Tensor = ratio, columns: Tensor = columns,
            writers: tuple[Node, ...] = tuple(owners(flow, use.codes)),
        ) -> Weights:  # fmt: skip
            assert node.weight is not None
            assert node.bias is not None
            gamma, inverse = theta[node.weight], torch.exp(-t * columns.to(t))
            moved = {
                node.weight: gamma * inverse,
                node.bias: theta[node.bias] + gamma * ratio.to(t) * (inverse - 1),
            }
            return moved | scaled(theta, t, writers, a)

        writers = tuple(name for one in owners(flow, use.codes) for name in (one.weight, one.bias) if name)
        yield Symmetry("S10", node.name, curve, (node.weight, node.bias, *writers))


@dataclass(eq=False)
class Normalised:
    """S9 at one batch norm: the codes (k,), of `size`, of channels that it divides by their own spread, and their writers."""

    name: str
    own: Tensor
    size: int
    writers: tuple[Node, ...]

    @property
    def unit(self) -> Tensor:
        """Every channel alike, (k,)."""
        return torch.ones(len(self.own), dtype=torch.float64)

    def curve(self, exponents: Tensor) -> Symmetry:
        """T_t: W_c and b_c times exp(t a_c)."""
        a = self._spread(exponents)

        def curve(theta: Weights, t: Tensor) -> Weights:
            return scaled(theta, t, self.writers, a)

        names = tuple(name for one in self.writers for name in (one.weight, one.bias) if name)
        return Symmetry("S9", self.name, curve, names, origin=self, c=exponents)

    def direction(self, theta: Weights, exponents: Tensor) -> Weights:
        """K: W_c and b_c times a_c."""
        a, moved = self._spread(exponents.cpu()), dict[str, Tensor]()
        for node in self.writers:
            assert node.weight is not None
            weight, factor = theta[node.weight], a[node.start : node.start + node.channels]
            moved[node.weight] = weight * factor.to(weight).view(-1, *[1] * (weight.ndim - 1))
            if node.bias is not None:
                moved[node.bias] = theta[node.bias] * factor.to(weight)
        return moved

    def _spread(self, exponents: Tensor) -> Tensor:
        return torch.zeros(self.size, dtype=torch.float64).index_copy(0, self.own, exponents.double())


def batch_norm_scales(flow: Dataflow, source: torch.Generator) -> Iterator[Symmetry]:
    """S9: W_c s, b_c s: a batch norm by the batch's own statistics divides by them."""
    for use, a in _normalised(flow, source):
        own = a.nonzero()[:, 0]
        yield Normalised(use.node.name, own, len(a), tuple(owners(flow, use.codes))).curve(a[own])


def scaled(theta: Weights, t: Tensor, writers: tuple[Node, ...], a: Tensor) -> Weights:
    """Rows of the writers' weights and biases times exp(t a), for exponents a code."""
    moved: Weights = {}
    for node in writers:
        factor = torch.exp(t * a[node.start : node.start + node.channels].to(t))
        assert node.weight is not None
        weight = theta[node.weight]
        moved[node.weight] = weight * factor.view(-1, *[1] * (weight.ndim - 1))
        if node.bias is not None:
            moved[node.bias] = theta[node.bias] * factor
    return moved


def _normalised(flow: Dataflow, source: torch.Generator) -> Iterator[tuple[Use, Tensor]]:
    """Batch norms of channels that layers write for them alone, with random exponents a code of those channels."""
    last = flow.nodes[-1]
    size = last.start + last.channels
    count, linear = torch.zeros(size, dtype=torch.long), torch.zeros(size, dtype=torch.bool)
    for use in (*flow.uses, flow.logits):
        for codes in use.codes:
            count[codes.unique()] += 1
    for node in flow.nodes:
        if node.kind == "linear" and node.bias_codes is None:
            linear[node.start : node.start + node.channels] = True
    for use in flow.uses:
        if use.node.kind == "batch_norm" and len(use.codes) == 1 and not use.flags[0]:
            codes = use.codes[0]
            own = codes[linear[codes] & (count[codes] == 1)].unique()
            if len(own):
                a = torch.zeros(size, dtype=torch.float64)
                a[own] = SPREAD * torch.randn(len(own), generator=source, dtype=torch.float64)
                yield use, a
