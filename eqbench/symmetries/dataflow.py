"""Traces which channels every layer of a network is given and which it gives, through what comes between two layers.

Every channel that a layer writes gets a number of its own, its code. Beside each activation runs a tensor of codes: views,
slices, concatenations and pools act on it as they act on the activation, sums keep the codes of both sides, and what
multiplies or bends the values leaves a flag. So no rule names an architecture or the order of its axes.
"""

import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from eqbench.symmetries import operations as op
from eqbench.symmetries import products

SOURCES = 6  # different channels that may reach one column of a layer, from different positions
RULES = op.RULES | products.RULES
NO_FLAGS: frozenset[str] = frozenset()


@dataclass(eq=False)
class Node:
    """A layer, or anything else that makes new channels out of others.

    Attributes:
        kind: linear (convolutions too), batch_norm, layer_norm, group_norm, rms_norm, scale (a factor a channel), parameter
            (one that is added), opaque, image.
        name: of the module. channels: how many it writes. start: the code of the first.
        weight, bias: names of its parameters. bias_codes: where the bias is put together from others, their codes.
        groups, padded: of a convolution. axis: of its channels, of a parameter. statistics: names of mean and variance.
    """

    kind: str
    name: str
    channels: int
    start: int
    weight: str | None = None
    bias: str | None = None
    bias_codes: Tensor | None = None
    groups: int = 1
    padded: bool = False
    axis: int = -1
    statistics: tuple[str, str] | None = None
    eps: float = 0.0

    def channel(self, codes: Tensor) -> Tensor:
        """The numbers, from 0, of channels of this node given as codes."""
        return codes - self.start


@dataclass(eq=False)
class Use:
    """What a node is given: codes (terms, columns), 0 for none; the terms of a sum are alternatives to position too."""

    node: Node
    codes: Tensor
    flags: list[frozenset[str]]


@dataclass(eq=False)
class Attention:
    """Codes (heads, d) of the queries and the keys that are multiplied, with what flags they came."""

    queries: Tensor
    keys: Tensor
    flags: frozenset[str]


@dataclass(eq=False)
class Term:
    """One summand of an activation: a code for each of its entries."""

    codes: Tensor
    flags: frozenset[str] = NO_FLAGS

    def flagged(self, *flags: str) -> "Term":
        return Term(self.codes, self.flags | set(flags))


@dataclass
class Dataflow:
    """What `trace` found: nodes in order of execution, what each is given, and what makes the logits.

    Attributes:
        attentions: queries and keys. values: codes (heads, d) of what attention averages over positions.
        shapes: of the parameters.
    """

    nodes: list[Node]
    uses: list[Use]
    attentions: list[Attention]
    values: list[Tensor]
    logits: Use
    shapes: dict[str, torch.Size]

    def owner(self, code: int) -> Node:
        """The node that writes this channel."""
        return self.nodes[bisect_right(self.starts, code) - 1]

    @cached_property
    def starts(self) -> list[int]:
        """The first code of each node, ascending."""
        return [node.start for node in self.nodes]

    def uses_of(self, node: Node) -> list[tuple[Use, int]]:
        """Where channels of a node arrive: (use, number of the term)."""
        return self._arrivals.get(node, [])

    @cached_property
    def _arrivals(self) -> dict[Node, list[tuple[Use, int]]]:
        found: dict[Node, list[tuple[Use, int]]] = {}
        for use in (*self.uses, self.logits):
            for i, codes in enumerate(use.codes):
                for owner in owners(self, codes):
                    found.setdefault(owner, []).append((use, i))
        return found


@torch.no_grad()
def trace(module: nn.Module, x: Tensor) -> Dataflow:
    """The data flow of one forward pass of images x, in evaluation mode.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    >>> flow = trace(net.eval(), torch.rand(2, 3, 3, 3))
    >>> [(use.node.name, use.codes.tolist(), use.flags) for use in flow.uses if use.node.name == "4"]
    [('4', [[8, 9, 10, 11]], [frozenset({'relu'})])]
    """
    tracer = Tracer(module)
    tracer.give(x, [tracer.write(tracer.node("image", "", x.shape[1]), x, 1)])
    module.train().eval()
    with tracer:
        y = module(x)
    logits = tracer.reading(tracer.node("opaque", "logits", 1), y, 1)
    counts: dict[str, int] = {}
    for name in (name for node in tracer.nodes for name in (node.weight, node.bias) if name):
        counts[name] = counts.get(name, 0) + 1
    for node in tracer.nodes:  # a parameter that serves twice is changed nowhere
        if any(counts.get(name or "", 0) > 1 for name in (node.weight, node.bias)):
            node.kind = "opaque"
    shapes = {name: p.shape for name, p in module.named_parameters()}
    return Dataflow(tracer.nodes, tracer.uses, tracer.attentions, tracer.averaged, logits, shapes)


@dataclass(eq=False)
class Tracer(TorchFunctionMode):
    """Follows every torch function of a forward pass."""

    module: nn.Module
    nodes: list[Node] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    attentions: list[Attention] = field(default_factory=list)
    averaged: list[Tensor] = field(default_factory=list)
    values: dict[int, tuple[Any, list[Term]]] = field(default_factory=dict)
    free: int = 1  # the next code; 0 stands for zeros

    def __post_init__(self) -> None:
        super().__init__()
        tensors = [*self.module.named_parameters(), *self.module.named_buffers()]
        self.names = {id(tensor): name for name, tensor in tensors}
        self.parameters = {id(p) for p in self.module.parameters()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        y = func(*args, **kwargs)
        name = op.name_of(func)
        if name in op.IGNORED or not any(isinstance(t, Tensor) for t in op.leaves(y)):
            return y
        rule: Callable[..., bool] | None = RULES.get(name)
        try:
            known = rule is not None and rule(self, func, args, kwargs, y)
        except (RuntimeError, IndexError, TypeError, ValueError, KeyError):
            known = False
        if not known:
            self.opaque(name, [t for t in op.leaves((args, kwargs)) if isinstance(t, Tensor)], y)
        return y

    def name(self, tensor: Any) -> str | None:
        """Of a parameter or buffer; None for other tensors."""
        return self.names.get(id(tensor))

    def give(self, tensor: Tensor, terms: list[Term]) -> None:
        key = id(tensor)

        def forget(_: Any, key: int = key) -> None:
            if key in self.values and self.values[key][0]() is None:
                del self.values[key]

        self.values[key] = (weakref.ref(tensor, forget), terms)

    def terms(self, tensor: Tensor) -> list[Term]:
        """The summands of a tensor; a parameter becomes a node when it is first asked for, other tensors are opaque."""
        entry = self.values.get(id(tensor))
        if entry is not None and entry[0]() is tensor:
            return entry[1]
        if id(tensor) in self.parameters and tensor.numel() > 1:
            axis = (
                1 if tensor.ndim == 4 and tensor.shape[1] > 1 else 0 if tensor.ndim == 3 and tensor.shape[0] > 1 else -1
            )
            node = self.node("parameter", self.names[id(tensor)], tensor.shape[axis], axis=axis)
            node.weight = self.names[id(tensor)]
            term = self.write(node, tensor, axis)
        elif tensor.numel() and not bool(tensor.any()):
            term = Term(torch.zeros((), dtype=torch.float64).expand(tensor.shape))
        else:
            term = self.write(self.node("opaque", self.names.get(id(tensor), "constant"), 1), tensor, None)
        self.give(tensor, [term])
        return [term]

    def node(self, kind: str, name: str, channels: int, **facts: Any) -> Node:
        self.nodes.append(Node(kind, name, channels, self.free, **facts))
        self.free += channels
        return self.nodes[-1]

    def write(self, node: Node, y: Tensor, axis: int | None) -> Term:
        """The term of a node's own output: channels along `axis`, or one for all."""
        codes = torch.tensor(float(node.start), dtype=torch.float64)
        if axis is not None:
            shape = [1] * y.ndim
            shape[axis] = node.channels
            codes = (codes + torch.arange(node.channels, dtype=torch.float64)).view(shape)
        return Term(codes.expand(y.shape))

    def reading(self, node: Node, x: Tensor, axis: int) -> Use:
        """What a node is given along the axis of its channels; opaque where too many channels share a column."""
        rows, flags = [], []
        for term in self.terms(x):
            dims = [d for d in range(x.ndim) if d != axis % x.ndim]
            found = distinct(term.codes, dims)
            if found is None:
                self.opaque("many", [x], None)
            for codes in found or ():
                rows.append(codes.reshape(-1).long())
                flags.append(term.flags)
        unique: dict[tuple[Any, frozenset[str]], Tensor] = {
            (tuple(row.tolist()), flag): row for row, flag in zip(rows, flags, strict=True) if bool(row.any())
        }
        codes = torch.stack(list(unique.values())) if unique else torch.zeros(0, x.shape[axis], dtype=torch.long)
        return Use(node, codes, [flag for _, flag in unique])

    def layer(self, x: Tensor, axis: int, y: Tensor, kind: str, named: str, channels: int, **facts: Any) -> bool:
        """Note a node with parameters that reads x and writes y."""
        node = self.node(kind, named, channels, **facts)
        self.uses.append(self.reading(node, x, axis))
        self.give(y, [self.write(node, y, axis)])
        return True

    def opaque(self, name: str, inputs: Sequence[Tensor], y: Any) -> None:
        """Whatever is not understood: its inputs are used, and its outputs are new."""
        node = self.node("opaque", name, 1)
        for x in inputs:
            if id(x) in self.values:
                for term in self.terms(x):
                    self.uses.append(Use(node, compact(term.codes).unique().long()[None], [term.flags]))
        for tensor in op.leaves(y):
            if isinstance(tensor, Tensor):
                self.give(tensor, [self.write(node, tensor, None)])


def compact(codes: Tensor, keep: int | None = None) -> Tensor:
    """Without the repetitions of an expanded tensor: broadcast axes (but `keep`) have length 1."""
    for d in range(codes.ndim):
        if codes.stride(d) == 0 and d != keep:
            codes = codes.narrow(d, 0, min(1, codes.shape[d]))
    return codes


def distinct(codes: Tensor, dims: Sequence[int]) -> list[Tensor] | None:
    """The different codes along `dims` (kept, of length 1), one tensor for each; None if there are too many."""
    left = compact(codes)
    found: list[Tensor] = []
    if not dims:
        return [codes]
    while bool(left.any()):
        if len(found) == SOURCES:
            return None
        top = left.amax(tuple(dims), keepdim=True)
        left = torch.where(left == top, 0.0, left)
        shape = [1 if d in dims else n for d, n in enumerate(codes.shape)]
        found.append(top.expand(shape))
    return found or [torch.zeros([1 if d in dims else n for d, n in enumerate(codes.shape)], dtype=codes.dtype)]


def owners(flow: Dataflow, codes: Tensor) -> Iterator[Node]:
    """The nodes that write any of these channels, once each."""
    where = torch.searchsorted(torch.tensor(flow.starts), codes[codes > 0].flatten().long(), right=True)
    yield from (flow.nodes[i - 1] for i in where.unique().tolist())
