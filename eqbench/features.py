"""Layer taps: what every block of a network returns, as maps (B, C, h, w) whose layout is declared, or refused."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from eqbench import families
from eqbench.blocks import find_blocks, listening, tensors
from eqbench.combined import Combined
from eqbench.errors import Unsupported
from eqbench.layouts import Declarations, Layout, Unknown
from eqbench.locality import corners, follows
from eqbench.models import Network


class Kind(StrEnum):
    """How a group acts on a layer's positions."""

    map = "map"  # (C, h, w): a spatial grid, the group moves its positions
    prefix = "prefix"  # (C, 1, p): class and register tokens, the group leaves them
    vector = "vector"  # (C, 1, 1): pooled features and logits, the group leaves them


@dataclass(frozen=True)
class Layer:
    """A tapped layer.

    Attributes:
        name: path of the module in the network, with `:prefix` for its prefix tokens; `logits` is the last.
        depth: 0 (first) to 1 (the logits), by order of execution.
        shape: (C, h, w) of its map of one image.
    """

    name: str
    depth: float
    kind: Kind
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Tap:
    """Where a layer's tensor is in what its block returns, and how it is read.

    Attributes:
        path: of the block. call: which of the calls of the block in one forward pass, from 1.
        output: index of the tensor among the tensors that it returns.
        clone: whether a later module overwrites it.
    """

    path: str
    call: int
    output: int
    layout: Layout
    clone: bool


@dataclass(frozen=True)
class Heard:
    """One call of a block: what it returned, and the versions of these tensors at that time."""

    path: str
    call: int
    outputs: list[Tensor]
    versions: list[int]


class Taps:
    """The layers of a network at one input size.

    Attributes:
        layers: those whose layout is known, in order of execution; the last is `logits`.
        refused: block -> why its tensor has no declared layout.
    """

    layers: tuple[Layer, ...]
    refused: dict[str, str]

    def __init__(self, network: nn.Module, x: Tensor) -> None:
        """Find the blocks of `network` by one forward pass: of the first of the images x (B, 3, n, n) and a noisy copy.

        Raises:
            Unsupported: the output is not one vector of logits an image.
        """
        self.network = network
        self._model = model = network.module if isinstance(network, Network) else network
        self._blocks, self._stages = ({}, {}) if isinstance(model, Combined) else find_blocks(model)
        noise = torch.rand(x[:1].shape, generator=torch.Generator().manual_seed(0))
        x = torch.cat([x[:1], (x[:1] + noise.to(x)) % 1])
        declared = Declarations(x.shape, prefixes=families.prefixes(model))
        declared.add(families.grids(model, (x.shape[2], x.shape[3])))
        heard: list[Heard] = []

        def listen(path: str, call: int, output: Any) -> None:
            found = tensors(output)
            heard.append(Heard(path, call, found, [z._version for z in found]))

        def hear(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            declared.hear(module, (*args, *kwargs.values()), output)

        with torch.no_grad(), ExitStack() as stack:
            for module in model.modules():
                stack.callback(module.register_forward_hook(hear, with_kwargs=True).remove)
            called = stack.enter_context(listening(network, self._blocks, self._stages, listen))
            y = network(x)
        if not isinstance(y, Tensor) or y.ndim != 2 or len(y) != len(x):
            shape = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise Unsupported(f"the output for images {tuple(x.shape)} is {shape}: expected logits (B, classes)")
        self.refused = {
            path: "is not called as a module"
            for path, block in self._blocks.items()
            if not called[path] and list(block.parameters())
        }
        if isinstance(model, Combined):
            self.refused["parts"] = model.reason()
        self._taps: dict[str, Tap] = {}
        self._read(heard, y, declared)
        self._list(y.shape[1])
        if not hasattr(model, "group_matcher"):  # timm's tokens are in the order that its families declare
            self._locate(x[1:])
            self._list(y.shape[1])

    def _read(self, heard: list[Heard], logits: Tensor, declared: Declarations) -> None:
        """Name every tensor that was heard and settle its layout; the same values again are no layer of their own."""
        named = {_values(logits, logits._version): "logits"}
        for block in heard:
            path, module = block.path, self._blocks.get(block.path) or self._stages[block.path]
            values = [_values(z, version) for z, version in zip(block.outputs, block.versions, strict=True)]
            new = [i for i, key in enumerate(values) if named.get(key) not in (*self._taps, "logits")]
            name = path if block.call == 1 else f"{path}@{block.call}"
            features = families.features(module, len(values))
            if not features and (new or not values):
                self.refused[name] = f"returns {len(values)} tensors: which of them are features is not declared"
            for i in (i for i in features if i in new):
                layer, z = name if len(features) == 1 else f"{name}[{i}]", block.outputs[i]
                try:
                    if reason := families.refusal(self._model, path):
                        raise Unknown(reason)
                    layout = _varying(declared.layout(z, families.order(self._model, path, module, i)), z)
                except Unknown as error:
                    self.refused[layer] = str(error)
                else:
                    self.refused.pop(named.get(values[i], ""), None)  # refused in another shape
                    self._taps[layer] = Tap(path, block.call, i, layout, clone=z._version != block.versions[i])
                named[values[i]] = layer

    def _locate(self, x: Tensor) -> None:
        """Refuse tokens that do not lie where their grid says; x is one image (1, 3, n, n)."""
        tokens = [name for name, tap in self._taps.items() if tap.layout.axes in ("NLC", "NCL") and tap.layout.grid]
        if tokens:
            with torch.no_grad(), self.recording() as maps:
                self.network(corners(x))
        for name in tokens:
            grid = self._taps[name].layout.grid
            if grid != (1, 1) and not follows(maps[name]):
                del self._taps[name]
                self.refused[name] = (
                    f"what a corner of the image excites is in no corner of a grid {grid} of its tokens"
                )

    def _list(self, classes: int) -> None:
        layers: list[Layer] = []
        for i, (name, tap) in enumerate(self._taps.items()):
            layout, depth = tap.layout, i / len(self._taps)
            if layout.prefix and not layout.mute:
                layers.append(Layer(f"{name}:prefix", depth, Kind.prefix, (layout.channels, 1, layout.prefix)))
            if layout.grid:
                kind = Kind.vector if layout.grid == (1, 1) else Kind.map
                layers.append(Layer(name, depth, kind, (layout.channels, *layout.grid)))
        self.layers = (*layers, Layer("logits", 1.0, Kind.vector, (classes, 1, 1)))
        self._shapes = {layer.name: layer.shape for layer in self.layers}

    @property
    def coverage(self) -> float:
        """The share of blocks that are measured; 1 for a network without blocks."""
        return len(self._taps) / max(1, len(self._taps) + len(self.refused)) if self.refused else 1.0

    @contextmanager
    def recording(self, gradients: dict[str, Tensor] | None = None) -> Iterator[dict[str, Tensor]]:
        """Inside, every forward pass of the network fills the dict: layer name -> (B, C, h, w), the logits too.

        The maps are views where they can be, in the order of `layers`; gradients, dual numbers and `torch.func`
        transforms pass through them.

        Args:
            gradients: filled by every backward pass through such a forward pass: layer name -> the gradient with respect
                to its map, without the logits. (The maps themselves lie on no path to the logits.)
        """
        maps: dict[str, Tensor] = {}
        at: dict[tuple[str, int], list[tuple[str, Tap]]] = {}
        for name, tap in self._taps.items():
            at.setdefault((tap.path, tap.call), []).append((name, tap))

        def put(name: str, z: Tensor, into: dict[str, Tensor]) -> None:
            if tuple(z.shape[1:]) != self._shapes[name]:
                raise Unsupported(f"layer {name}: {tuple(z.shape[1:])}, but {self._shapes[name]} when it was tapped")
            into[name] = z

        def split(name: str, tap: Tap, z: Tensor, into: dict[str, Tensor]) -> None:
            if tap.layout.prefix and not tap.layout.mute:
                put(f"{name}:prefix", tap.layout.tokens(z), into)
            if tap.layout.grid:
                put(name, tap.layout.map(z), into)

        def keep(path: str, call: int, output: Any) -> None:
            for name, tap in at.get((path, call), []):
                z = tensors(output)[tap.output]
                if gradients is not None and z.requires_grad:
                    z.register_hook(lambda g, name=name, tap=tap: split(name, tap, g, gradients))
                split(name, tap, z.clone() if tap.clone else z, maps)

        with ExitStack() as stack:
            stack.callback(self.network.register_forward_pre_hook(lambda m, args: maps.clear()).remove)
            stack.enter_context(listening(self.network, self._blocks, self._stages, keep))
            last = self.network.register_forward_hook(lambda m, args, y: put("logits", y[:, :, None, None], maps))
            stack.callback(last.remove)
            yield maps


def _varying(layout: Layout, z: Tensor) -> Layout:
    """The layout of what depends on the image: prefix tokens that are the same for both images are mute.

    Raises:
        Unknown: all of z is.
    """
    parts = ([layout.map(z)] if layout.grid else []) + ([layout.tokens(z)] if layout.prefix else [])
    same = [torch.equal(part[0], part[1]) for part in parts]
    if all(same):
        raise Unknown("is the same for every image")
    return replace(layout, mute=layout.prefix > 0 and same[-1])


def _values(z: Tensor, version: int) -> tuple[int, int, int]:
    """Equal for tensors that are views of all of the same values."""
    return z.data_ptr(), z.numel(), version
