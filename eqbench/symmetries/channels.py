"""Finds which entries of a network's weights belong to one and the same hidden channel, by its data flow.

Outputs of layers that mix channels by weights are cut out of the autograd graph: what is left between two layers hands
channels on (norms, activations, pools, additions, gates, attention over positions), and gradients tell which to which.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Ids = NDArray[np.int64]
LOCAL = 0.75  # share of a gradient's energy on the channels asked for, a half of them: 1 if they are kept, 0.5 if mixed
CLEAR = (
    20.0  # ratio of energies that settles a bit of a channel's place: infinite if it is kept, about 1 if it is mixed
)
MIXING = (nn.functional.linear, nn.functional.conv1d, nn.functional.conv2d)
# How attention modules name the layers of queries, keys and values.
QKV = (("qkv",), ("q", "k", "v"), ("q_proj", "k_proj", "v_proj"), ("q", "kv"))


@dataclass(frozen=True)
class Place:
    """An axis of a parameter or buffer; of a grouped convolution's inputs, only at the rows of one group."""

    tensor: str
    axis: int
    rows: tuple[int, int] | None = None


@dataclass
class Channels:
    """Hidden channels: classes of entries that must move together.

    Attributes:
        places: for each place, the class of each of its positions.
        fixed: classes of the image and of the logits, and those that are met but once.
        groups: for each layer that keeps groups of channels apart (a grouped convolution, the heads of attention), the
            classes of each group.
    """

    places: dict[Place, Ids]
    fixed: set[int]
    groups: list[list[Ids]]


@dataclass(eq=False)
class _Call:
    """One use of a weight: `entry` is what it is given, with its graph, `cut` what it gives, as a leaf.

    `made` is the weight as it was used, with its graph, if that is not the parameter itself (weight standardisation).
    """

    weight: str
    bias: str | None
    groups: int
    axis: int
    entry: Tensor
    cut: Tensor
    made: Tensor | None


@dataclass(eq=False)
class _Cut(TorchFunctionMode):
    """Records every linear layer and convolution, and cuts its output out of the graph."""

    names: dict[int, str]  # id of a parameter -> its name
    stack: list[tuple[str, nn.Module]]
    calls: list[_Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        y = func(*args, **kwargs)
        if func not in MIXING:
            return y
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        x, weight = given["input"], given["weight"]
        name = self._owner(weight)
        cut = y.detach().requires_grad_()
        if name is not None:
            axis = -1 if func is nn.functional.linear else 1
            groups = 1 if axis == -1 else x.shape[1] // weight.shape[1]
            made = None if id(weight) in self.names else weight
            self.calls.append(_Call(name, self._owner(given.get("bias")), groups, axis, x.clone(), cut, made))
        return cut.clone()

    def _owner(self, tensor: Tensor | None) -> str | None:
        """The parameter that a layer was given; of one made from it (weight standardisation), the module's own."""
        if tensor is None or id(tensor) in self.names:
            return None if tensor is None else self.names[id(tensor)]
        prefix, module = self.stack[-1]
        own = getattr(module, "weight", None)
        return f"{prefix}.weight" if isinstance(own, nn.Parameter) and own.shape == tensor.shape else None


class _Ties:
    """Channels as numbers, equal ones joined."""

    def __init__(self) -> None:
        self.count = 0
        self.edges: list[tuple[Ids, Ids]] = []

    def new(self, n: int) -> Ids:
        self.count += n
        return np.arange(self.count - n, self.count)

    def join(self, a: Ids, b: Ids) -> None:
        self.edges.append((a, b))

    def classes(self) -> Ids:
        rows, columns = (np.concatenate([np.zeros(0, np.int64), *ends]) for ends in zip(*self.edges, strict=True))
        graph = coo_array((np.ones(len(rows)), (rows, columns)), (self.count, self.count))
        return cast(Ids, connected_components(graph, directed=False)[1].astype(np.int64))


def channels(network: nn.Module, x: Tensor) -> Channels:
    """The hidden channels of a network, as far as its data flow shows them.

    What is found is a proposal, to be confirmed on the logits: no rule names an architecture but for the names of the
    layers of attention.

    Args:
        network: with weights in general position (`twin.blank`). x: a few images (B, 3, n, n) that it takes.
    """
    parameters = dict(network.named_parameters())
    calls, logits = _record(network, x, parameters)
    ties, places = _Ties(), dict[Place, Ids]()
    inputs: dict[str, Ids] = {}
    outputs: dict[str, Ids] = {}
    groups: list[list[Ids]] = []
    met: list[Ids] = []  # biases apart: they are where their weights are
    for call in calls:
        if call.weight in outputs:
            continue
        (n_in, n_out), weight = _widths(call), parameters[call.weight]
        into, out = inputs[call.weight], outputs[call.weight] = ties.new(n_in), ties.new(n_out)
        places[Place(call.weight, 0)] = out
        met += [out] if call.groups == n_in == n_out else [into, out]
        if call.bias is not None:
            places[Place(call.bias, 0)] = out
        if call.groups == 1:
            places[Place(call.weight, 1)] = into
        elif call.groups == n_in == n_out:
            ties.join(into, out)
        else:
            wide, high = weight.shape[1], n_out // call.groups
            for g in range(call.groups):
                places[Place(call.weight, 1, (g * high, (g + 1) * high))] = into[g * wide : (g + 1) * wide]
            groups.append([np.concatenate(pair) for pair in zip(into.reshape(call.groups, -1), out.reshape(call.groups, -1), strict=True)])  # fmt: skip

    mixing = {name for call in calls for name in (call.weight, call.bias)}
    loose = {name: p for name, p in parameters.items() if name not in mixing}
    axes = {(name, axis): ties.new(n) for name, p in loose.items() for axis, n in enumerate(p.shape)}
    touched: dict[tuple[str, int], None] = {}
    fixed = [inputs[call.weight] for call in calls if not call.entry.requires_grad]
    ends = [(call.entry, call.axis, inputs[call.weight]) for call in calls]
    ends.append((logits, 1, ties.new(logits.shape[1])))
    fixed.append(ends[-1][2])
    leaves = [(call.cut, call.axis) for call in calls]

    def follow(z: Tensor, axis: int, ids: Ids) -> None:
        flow = _Flow(z, axis, leaves)
        for j, here, there in flow.handed_on():
            ties.join(ids[here], outputs[calls[j].weight][there])
        for name, p_axis in flow.parameters(loose):
            ties.join(ids, axes[name, p_axis])
            touched[name, p_axis] = None

    ends += [(call.made, 0, outputs[call.weight]) for call in calls if call.made is not None]  # gains of weights
    for end in ends:
        if end[0].requires_grad:
            follow(*end)
    if loose.keys() - {name for name, _ in touched}:  # layers that mix tokens have the channels on another axis
        for call in calls:
            if call.entry.ndim == 3 and call.entry.requires_grad:
                other = 1 if call.axis == -1 else 2
                follow(call.entry, other, ties.new(call.entry.shape[other]))
    places |= {Place(*key): axes[key] for key in touched}
    groups += _heads(network, inputs, outputs, places, ties)
    _buffers(network, places)

    classes = ties.classes()
    met += [axes[key] for key in touched]
    return Channels(
        {place: classes[ids] for place, ids in places.items()},
        {*classes[np.concatenate(fixed)].tolist(), *_alone(classes[np.concatenate(met)])},
        [[np.unique(classes[ids]) for ids in grouping] for grouping in groups],
    )


def _alone(met: Ids) -> list[int]:
    """Classes that are met but once: of a unit that no image excites, as the data flow does not show who reads or writes it."""
    return np.nonzero(np.bincount(met) == 1)[0].tolist()


def _record(network: nn.Module, x: Tensor, parameters: dict[str, nn.Parameter]) -> tuple[list[_Call], Tensor]:
    stack: list[tuple[str, nn.Module]] = []
    hooks = []
    for name, module in network.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda m, args, name=name: stack.append((name, m))))
        hooks.append(module.register_forward_hook(lambda m, args, y: (stack.pop(), None)[1]))
    cut = _Cut({id(p): name for name, p in parameters.items()}, stack)
    try:
        with torch.enable_grad(), cut:
            logits: Tensor = network(x)
    finally:
        for hook in hooks:
            hook.remove()
    return cut.calls, logits


def _widths(call: _Call) -> tuple[int, int]:
    return call.entry.shape[call.axis], call.cut.shape[call.axis]


class _Flow:
    """What reaches one tensor z, whose channels are on `axis`, from the outputs of layers."""

    def __init__(self, z: Tensor, axis: int, outs: Sequence[tuple[Tensor, int]]) -> None:
        self.z, self.axis, self.outs = z, axis, outs
        self.width = z.shape[axis]
        signs = torch.randint(
            2, z.shape, generator=torch.Generator().manual_seed(0)
        )  # of one size: no position outweighs
        self.noise = signs.mul(2).sub(1).to(z)

    def _energies(self, chosen: Ids, leaves: Sequence[Tensor]) -> list[Tensor | None]:
        """The gradients of z's `chosen` channels with respect to the leaves; None: they do not reach it."""
        mask = torch.zeros(self.width, dtype=self.z.dtype, device=self.z.device)
        mask[torch.from_numpy(chosen)] = 1.0
        shape = [1] * self.z.ndim
        shape[self.axis] = self.width
        cotangent = self.noise * mask.view(shape)
        return list(torch.autograd.grad(self.z, leaves, cotangent, retain_graph=True, allow_unused=True))

    def handed_on(self) -> Iterator[tuple[int, Ids, Ids]]:
        """(output j, channels of z, the channels of j that they are)."""
        whole = np.arange(self.width)
        even = self._energies(whole[::2], [cut for cut, _ in self.outs])
        for j, ((cut, axis), gradient) in enumerate(zip(self.outs, even, strict=True)):
            if gradient is None:
                continue
            n, energy = cut.shape[axis], _along(gradient, axis)
            if n == self.width and float(energy[::2].sum()) > LOCAL * float(energy.sum()):
                yield j, whole, whole
            elif n < self.width and self.width % n == 0 and (runs := list(self._runs(j, n))):
                yield from ((j, here, np.arange(n)) for here in runs)
            elif n != self.width:
                here, there = self._decode(j)
                if len(there):
                    yield j, here, there

    def _runs(self, j: int, n: int) -> Iterator[Ids]:
        """The channels of z that are copies of all n channels of an output: patches merged, or maps flattened."""
        cut, axis = self.outs[j]
        blocks = np.arange(self.width)

        def copied(run: Ids) -> bool:
            (gradient,) = self._energies(run[::2], [cut])
            energy = torch.zeros(n) if gradient is None else _along(gradient, axis)
            return float(energy[::2].sum()) > LOCAL * max(float(energy.sum()), 1e-300)

        for runs in (blocks.reshape(-1, n), blocks.reshape(n, -1).T):
            if all(copied(run) for run in runs):
                yield from runs
                return

    def _decode(self, j: int) -> tuple[Ids, Ids]:
        """Channels of an output of another width (concatenated, split, gated): the bits of their place, one by one."""
        (cut, axis), whole = self.outs[j], np.arange(self.width)
        n = cut.shape[axis]
        place, known = np.zeros(n, np.int64), np.ones(n, bool)
        for bit in range(max(1, math.ceil(math.log2(self.width)))):
            ends = [self._energies(whole[(whole >> bit & 1) == value], [cut])[0] for value in (0, 1)]
            off, on = ((torch.zeros(n) if g is None else _along(g, axis)).numpy() for g in ends)
            known &= np.maximum(on, off) > CLEAR * np.minimum(on, off)
            place |= np.where(on > off, 1 << bit, 0)
        known &= place < self.width
        shift = place - np.arange(n)
        if known.any():  # channels behind a ReLU that is off move as the others do
            common = np.bincount(shift[known] + n).argmax() - n
            alike = float((shift[known] == common).mean())
            if alike > LOCAL and common >= 0 and common + n <= self.width:
                place, known = np.arange(n) + common, np.ones(n, bool)
        return place[known], np.nonzero(known)[0]

    def parameters(self, loose: dict[str, nn.Parameter]) -> Iterator[tuple[str, int]]:
        """The axes of parameters of norms, scales and embeddings that are z's channels."""
        wide = {name: p for name, p in loose.items() if self.width in p.shape and p.requires_grad}
        if not wide:
            return
        gradients = self._energies(np.arange(0, self.width, 2), list(wide.values()))
        for (name, p), gradient in zip(wide.items(), gradients, strict=True):
            for axis, n in enumerate(p.shape):
                if gradient is not None and n == self.width:
                    energy = _along(gradient, axis)
                    if float(energy[::2].sum()) > LOCAL * float(energy.sum()):
                        yield name, axis


def _along(gradient: Tensor, axis: int) -> Tensor:
    """Energy of each channel."""
    return gradient.movedim(axis, 0).reshape(gradient.shape[axis], -1).double().square().sum(1).cpu()


def _heads(
    network: nn.Module, inputs: dict[str, Ids], outputs: dict[str, Ids], places: dict[Place, Ids], ties: _Ties
) -> Iterator[list[Ids]]:
    """The heads of attention, as groups: each has its queries, keys and values, and entries of what is a number a head.

    Query i and key i of a head meet in a scalar product: they are one channel.
    """
    for prefix, module in network.named_modules():
        heads = getattr(module, "num_heads", None)
        names = next((names for names in QKV if all(hasattr(module, name) for name in names)), ())
        layers = [f"{prefix}.{name}.weight".lstrip(".") for name in names]
        if not isinstance(heads, int) or not layers or any(layer not in outputs for layer in layers):
            continue
        rows = np.concatenate([outputs[layer] for layer in layers])
        if len(rows) % (3 * heads):
            continue
        query, key, value = rows.reshape(3, heads, -1)
        ties.join(query.ravel(), key.ravel())
        units = [query, value]
        for name, p in module.named_parameters(recurse=False):
            if list(p.shape).count(heads) == 1:
                units.append(ties.new(heads)[:, None])
                places[Place(f"{prefix}.{name}".lstrip("."), list(p.shape).index(heads))] = units[-1].ravel()
        yield [np.concatenate([unit[h] for unit in units]) for h in range(heads)]


def _buffers(network: nn.Module, places: dict[Place, Ids]) -> None:
    """Running statistics move as the affine parameters beside them."""
    for prefix, module in network.named_modules():
        own = places.get(Place(f"{prefix}.weight".lstrip("."), 0))
        for name, buffer in module.named_buffers(recurse=False):
            if own is not None and buffer.is_floating_point() and buffer.shape == (len(own),):
                places[Place(f"{prefix}.{name}".lstrip("."), 0)] = own
