"""Finds the weight layers of a network, and which of their inputs and outputs are one and the same set of channels."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from eqbench import families
from eqbench.errors import Unsupported
from eqbench.layouts import Declarations, Layout, Unknown
from eqbench.models import Network
from eqbench.probes.circuitry.graph import Graph, Heads, Port, Space, Weight, given

LOCAL = 0.75  # share of a gradient's energy on the channels asked for, a half of them: 1 if they are kept, 0.5 if mixed


@dataclass(eq=False)
class _Call:
    """The calls of a weight layer in the traced pass: `cut` is the output as a leaf of the graph, `shown` a copy."""

    given: Tensor
    version: int
    entry: Tensor
    count: int = 1
    cut: Tensor | None = None
    shown: Tensor | None = None
    norms: list[str] = field(default_factory=list)


class _Cut(TorchFunctionMode):
    """Cuts what mixes channels by weights out of the graph, also where it is called past its module."""

    MIXING = (nn.functional.linear, nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv_transpose2d)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        y = func(*args, **(kwargs or {}))
        return y.detach() if func in self.MIXING else y


def trace(network: nn.Module, x: Tensor) -> Graph:
    """Find the weight layers and their spaces by one forward pass of the images x (B, 3, n, n).

    Every weight layer's output is cut out of the graph: what is left between layers are norms, activations, pools,
    additions and gates. Where the gradient of one layer's input with respect to another one's output stays on the
    channels asked for, both are the same channels. No rule names an architecture.

    Raises:
        Unsupported: no convolution or linear layer can be read.
    """
    inner = network.module if isinstance(network, Network) else network
    kinds = (nn.Conv2d, nn.Linear, _BatchNorm)
    names: dict[nn.Module, str] = {m: name for name, m in inner.named_modules() if isinstance(m, kinds)}
    declared = Declarations(x.shape, prefixes=families.prefixes(inner))
    declared.add(families.grids(inner, (x.shape[2], x.shape[3])))
    calls: dict[nn.Module, _Call] = {}
    with torch.enable_grad(), _Cut(), ExitStack() as stack:

        def before(module: nn.Module, args: Any, named: Any) -> None:
            if module in calls:
                calls[module].count += 1
            else:
                x = given(args, named)
                calls[module] = _Call(x, x._version, x.clone())

        def after(module: nn.Module, args: Any, y: Tensor) -> Tensor:
            call = calls[module]
            call.cut = y.detach().requires_grad_()
            call.shown = call.cut.clone()
            return call.shown

        def norm(module: nn.Module, args: Any, named: Any) -> None:
            for call in calls.values():
                call.norms += [names[module]] * (call.shown is given(args, named))

        for module in network.modules():
            if isinstance(module, _BatchNorm):
                stack.callback(module.register_forward_pre_hook(norm, with_kwargs=True).remove)
            elif module in names:
                stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(after).remove)
            stack.callback(module.register_forward_hook(lambda m, args, y: declared.hear(m, args, y)).remove)
        logits = network(x)
    graph = _graph(inner, names, calls, declared, logits)
    if not graph.weights and not graph.heads:
        why = next(iter(graph.refused.values()), "it has none")
        raise Unsupported(f"{type(inner).__name__}: no convolution or linear layer can be read ({why})")
    return graph


def _graph(
    network: nn.Module, names: dict[nn.Module, str], calls: dict[nn.Module, _Call], declared: Declarations, y: Tensor
) -> Graph:
    weighty = {m: name for m, name in names.items() if not isinstance(m, _BatchNorm)}
    refused = {name: "is not called as a module" for m, name in weighty.items() if m not in calls}
    ordered = any(f"{families.family(m)}.{type(m).__name__}" in families.ORDERS for m in network.modules())
    known: list[tuple[nn.Module, _Call, Layout, Layout]] = []
    for module, call in calls.items():
        try:
            given, out = _layouts(module, call, declared)
            if ordered and {given.axes, out.axes} & {"NLC", "NCL"}:
                raise Unknown("its tokens are in an order of their own")
            known.append((module, call, given, out))
        except Unknown as reason:
            refused[names[module]] = str(reason)
    n = len(known)
    outs = [(call.cut, out) for _, call, _, out in known]
    tied = list(range(2 * n + 1))  # what each layer reads, what each writes, and the logits

    def tie(i: int, j: int) -> None:
        a, b = tied[i], tied[j]
        tied[:] = [a if root == b else root for root in tied]

    for i, (module, call, given, out) in enumerate(known):
        for j in _handed_on(call.entry, given, outs):
            tie(i, n + j)
        if _groups(module) == given.channels == out.channels:
            tie(i, n + i)
    for j in _handed_on(y, Layout("NC", y.shape[1], (1, 1)), outs):
        tie(2 * n, n + j)

    spaces: dict[int, Space] = {}
    shown: dict[tuple[int, int], Port] = {}
    weights: list[Weight] = []
    for i, (module, call, given, out) in enumerate(known):
        reads = spaces.setdefault(tied[i], Space(given.channels, tied[i]))
        writes = spaces.setdefault(tied[n + i], Space(out.channels, tied[n + i]))
        source = shown.setdefault((id(call.given), call.version), Port(names[module], False, given))
        raw = Port(names[module], True, out)
        target = Port(call.norms[0], True, out) if len(call.norms) == 1 else raw
        reads.image |= not call.entry.requires_grad and given.channels == 3
        writes.logits |= tied[n + i] == tied[2 * n]
        for space, port in ((reads, source), (writes, target)):
            space.ports += [port] * (port not in space.ports)
        shape, groups = _shape(module), _groups(module)
        weights.append(Weight(names[module], i / n, shape, groups, reads, writes, source, target, raw))
    heads = list(_heads(network, {m: (call, w) for (m, call, _, _), w in zip(known, weights, strict=True)}))
    inside = {w for one in heads for w in (one.qkv, one.proj)}
    return Graph(_blocked([w for w in weights if w not in inside], refused), heads, refused)


def _layouts(module: nn.Module, call: _Call, declared: Declarations) -> tuple[Layout, Layout]:
    """Of what a layer reads and writes.

    Raises:
        Unknown: the layer cannot be read; says why.
    """
    if call.count > 1:
        raise Unknown(f"is called {call.count} times a pass")
    assert call.cut is not None
    given, out, shape = declared.layout(call.given), declared.layout(call.cut), _shape(module)
    if given.grid is None or out.grid is None:
        raise Unknown("is given prefix tokens alone")
    if (out.channels, given.channels // _groups(module)) != shape[:2]:
        raise Unknown(f"maps {given.axes} to {out.axes}: its weight {shape} mixes positions, not channels")
    return given, out


def _handed_on(z: Tensor, layout: Layout, outs: Sequence[tuple[Tensor | None, Layout]]) -> Iterator[int]:
    """Which outputs reach z with their channels unmixed: a random gradient on the even channels stays there."""
    leaves = [(j, cut, out) for j, (cut, out) in enumerate(outs) if out.channels == layout.channels and cut is not None]
    if not z.requires_grad or not leaves:
        return
    cotangent = torch.zeros_like(z, memory_format=torch.contiguous_format)
    even = layout.map(cotangent)[:, ::2]
    even += torch.randn(even.shape, generator=torch.Generator().manual_seed(0)).to(even)
    gradients = torch.autograd.grad(z, [cut for _, cut, _ in leaves], cotangent, retain_graph=True, allow_unused=True)
    for (j, _, out), gradient in zip(leaves, gradients, strict=True):
        if gradient is not None:
            energy = out.map(gradient).double().square().sum((0, 2, 3))
            if float(energy[::2].sum()) > LOCAL * float(energy.sum()):
                yield j


def _groups(module: nn.Module) -> int:
    return int(getattr(module, "groups", 1))


def _shape(module: nn.Module) -> tuple[int, ...]:
    """(out, in / groups, kh, kw); a linear layer is a convolution with one tap."""
    shape = tuple(cast(Tensor, module.weight).shape)
    return shape if len(shape) == 4 else (*shape, 1, 1)


def _blocked(weights: list[Weight], refused: dict[str, str]) -> list[Weight]:
    """Tie the blocks that grouped convolutions keep apart; refuse those that do not fit one another."""
    kept = []
    for one in weights:
        ends = (one.reads, one.writes)
        if one.groups > 1 and one.reads is not one.writes:
            if one.reads.image or any(space.blocks not in (1, one.groups) for space in ends):
                refused[one.name] = f"its {one.groups} groups do not fit those of its neighbours"
                continue
            before = {space.joint for space in ends}
            for space in (space for w in weights for space in (w.reads, w.writes) if space.joint in before):
                space.joint = one.reads.joint
            one.reads.blocks = one.writes.blocks = one.groups
        kept.append(one)
    return kept


def _heads(network: nn.Module, known: dict[nn.Module, tuple[_Call, Weight]]) -> Iterator[Heads]:
    """Attention whose qkv and proj are linear layers, with rows and columns found to be (3, heads, d) and (heads, d)."""
    for name, module in network.named_modules():
        parts = (getattr(module, "qkv", None), getattr(module, "proj", None), getattr(module, "num_heads", None))
        if parts[0] not in known or parts[1] not in known or not isinstance(parts[2], int):
            continue
        (into, qkv), (out, proj), heads = known[parts[0]], known[parts[1]], parts[2]
        width = proj.source.layout.channels
        if qkv.target.layout.channels != 3 * width or width % heads or not out.entry.requires_grad:
            continue
        first = torch.zeros_like(out.entry)  # a gradient on the first head's channels
        proj.source.layout.map(first)[:, : width // heads] += 1.0
        (gradient,) = torch.autograd.grad(
            out.entry, [cast(Tensor, into.cut)], first, retain_graph=True, allow_unused=True
        )
        if gradient is not None:
            energy = qkv.target.layout.map(gradient).double().square().sum((0, 2, 3)).reshape(3, heads, -1).sum(2)
            if bool((energy[:, 0] > LOCAL * energy.sum(1)).all()):
                yield Heads(name, heads, qkv, proj)
