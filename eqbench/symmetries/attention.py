"""S2, S6, S7: changes of attention's queries, keys and values that its output does not see, head by head."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from eqbench.symmetries.dataflow import Dataflow, Node, owners
from eqbench.symmetries.transformations import Symmetry, Weights

SPREAD = 0.5  # |Z| of a random generator of GL(d), spectral norm about this


@dataclass(eq=False)
class Side:
    """Channels (heads, d) of a layer: rows of what it writes, or columns of what it reads.

    Attributes:
        bias: parts of the bias: (parameter, positions in it, positions among the heads * d channels).
    """

    weight: str
    index: Tensor
    columns: bool = False
    bias: tuple[tuple[str, Tensor, Tensor], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.weight, *(name for name, _, _ in self.bias))

    def get(self, theta: Weights) -> Tensor:
        """(heads, d, m): a row a channel, the bias as last column."""
        weight = theta[self.weight]
        rows = (weight.transpose(0, 1) if self.columns else weight).flatten(1)[self.index.flatten()]
        last = rows.new_zeros(len(rows))
        for name, there, here in self.bias:
            last = last.index_put((here,), theta[name][there])
        return torch.cat([rows, last[:, None]], 1).view(*self.index.shape, -1)

    def put(self, theta: Weights, rows: Tensor) -> Weights:
        """The parameters with these rows instead."""
        weight, flat = theta[self.weight], rows.flatten(0, 1)
        if self.columns:
            weight = weight.transpose(0, 1)
        new = weight.flatten(1).index_copy(0, self.index.flatten().to(flat.device), flat[:, :-1]).view(weight.shape)
        moved = {self.weight: new.transpose(0, 1) if self.columns else new}
        for name, there, here in self.bias:
            moved[name] = moved.get(name, theta[name]).index_copy(0, there.to(flat.device), flat[here, -1])
        return moved


@dataclass(eq=False)
class Pair:
    """Two sides that the network knows by L'R (m x m') alone: left (heads, d, m), right (heads, d, m')."""

    family: str
    name: str
    left: Side
    right: Side

    @property
    def unit(self) -> Tensor:
        """The identity of every head, (heads, d, d)."""
        heads, d = self.left.index.shape
        return torch.eye(d, dtype=torch.float64).expand(heads, d, d)

    def curve(self, z: Tensor) -> Symmetry:
        """T_t: L -> exp(tZ)'L, R -> exp(-tZ)R for Z (heads, d, d)."""

        def curve(theta: Weights, t: Tensor) -> Weights:
            z_ = z.to(t)
            moved = self.left.put(theta, torch.matrix_exp(t * z_).mT @ self.left.get(theta))
            now = theta | moved
            return moved | self.right.put(now, torch.matrix_exp(-t * z_) @ self.right.get(now))

        return Symmetry(self.family, self.name, curve, (*self.left.names, *self.right.names), origin=self, c=z)

    def direction(self, theta: Weights, z: Tensor) -> Weights:
        """K: Z'L and -ZR."""
        none = {name: torch.zeros_like(theta[name]) for name in (*self.left.names, *self.right.names)}
        left, right = self.left.get(theta), self.right.get(theta)
        z = z.to(left)
        moved = self.left.put(none, z.mT @ left)
        return moved | self.right.put(none | moved, -z @ right)

    def random(self, source: torch.Generator) -> Symmetry:
        heads, d = self.left.index.shape
        z = torch.randn(heads, d, d, generator=source, dtype=torch.float64)
        return self.curve(SPREAD / (2 * d**0.5) * z)


def bias_parts(flow: Dataflow, node: Node, rows: Tensor) -> tuple[tuple[str, Tensor, Tensor], ...]:
    """Where the bias of these rows (k,) of a layer is kept; nothing where it is fixed."""
    if node.bias is not None:
        return ((node.bias, rows, torch.arange(len(rows))),)
    if node.bias_codes is None:
        return ()
    codes, parts = node.bias_codes[rows], []
    for owner in owners(flow, codes):
        here = torch.nonzero((codes >= owner.start) & (codes < owner.start + owner.channels)).flatten()
        if owner.kind == "parameter" and owner.weight is not None:
            parts.append((owner.weight, owner.channel(codes[here]), here))
    return tuple(parts)


def written(flow: Dataflow, codes: Tensor) -> Side | None:
    """The rows that write these channels (heads, d), if one ungrouped layer does and each is another."""
    nodes = list(owners(flow, codes))
    if len(nodes) != 1 or nodes[0].kind != "linear" or nodes[0].groups > 1 or codes.unique().numel() != codes.numel():
        return None
    node, rows = nodes[0], nodes[0].channel(codes)
    assert node.weight is not None
    return Side(node.weight, rows, bias=bias_parts(flow, node, rows.flatten()))


def read(flow: Dataflow, codes: Tensor) -> tuple[Side, str] | None:
    """The columns that read these channels, and the reader's name, if one ungrouped layer alone does."""
    uses = [
        use
        for node in owners(flow, codes)
        for use, i in flow.uses_of(node)
        if bool(torch.isin(use.codes[i], codes).any())
    ]
    if len(set(uses)) != 1 or uses[0].node.kind != "linear" or uses[0].node.groups > 1 or len(uses[0].codes) != 1:
        return None
    (columns,), node = uses[0].codes, uses[0].node
    place = {code: i for i, code in enumerate(columns.tolist())}
    if len(place) != len(columns) or uses[0].flags[0] != {"attention"} or node.weight is None:
        return None
    return Side(node.weight, torch.tensor([[place[code] for code in row] for row in codes.tolist()]), True), node.name


def pairs(flow: Dataflow) -> Iterator[Pair]:
    """S6 for every pair of queries and keys, S7 for every pair of values and what reads their averages."""
    for one in flow.attentions:
        q, k = written(flow, one.queries), written(flow, one.keys)
        if q is not None and k is not None:
            yield Pair("S6", q.weight.rpartition(".")[0], q, k)
    for codes in flow.values:
        v, out = written(flow, codes), None
        if v is not None and (out := read(flow, codes)) is not None:
            yield Pair("S7", out[1], v, out[0])


def key_biases(flow: Dataflow, source: torch.Generator) -> Iterator[Symmetry]:
    """S2: q'(k + b) adds q'b to every score of a row, which its softmax does not see: all of b is free."""
    for one in flow.attentions:
        codes = one.keys.unique()
        for node in owners(flow, codes):
            rows = node.channel(codes[(codes >= node.start) & (codes < node.start + node.channels)])
            parts = bias_parts(flow, node, rows)
            if node.kind == "opaque" or not parts:
                continue
            b = torch.randn(len(rows), generator=source, dtype=torch.float64)

            def curve(
                theta: Weights, t: Tensor, parts: tuple[tuple[str, Tensor, Tensor], ...] = parts, b: Tensor = b
            ) -> Weights:
                return {
                    name: theta[name].index_add(0, there.to(t.device), t * b[here].to(t)) for name, there, here in parts
                }

            yield Symmetry("S2", node.name, curve, tuple(n for n, _, _ in parts), sum(len(t) for _, t, _ in parts))
