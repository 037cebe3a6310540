"""Permutations of hidden channels: the orders in which a network can keep its channels and still be the same function."""

import copy
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from eqbench import functional
from eqbench.errors import Unsupported
from eqbench.groups.twin import blank, is_vector, reset_batch_norm
from eqbench.symmetries.channels import Channels, Place, channels

EXACT = 1e-11  # largest relative change of the logits, in float64, of what counts as a symmetry
WIDER = 0.1  # variance of random activations that is added, in units of their squared mean
SWEEPS = 50  # of weight matching, at most


@dataclass(frozen=True)
class Member:
    """Where the units of a space are in one tensor: unit u has the positions index[u], (units, m), of a place."""

    place: Place
    index: Tensor

    def rows(self, tensor: Tensor) -> Tensor:
        """The tensor's entries of each unit: (units, entries)."""
        part = tensor if self.place.rows is None else tensor[slice(*self.place.rows)]
        return part.movedim(self.place.axis, 0)[self.index.to(tensor.device)].flatten(1)


@dataclass(eq=False)
class Space:
    """Units (channels, or whole groups of them, or attention heads) that can be put in any order.

    Attributes:
        name: of the first weight that has them. size: how many. members: where they are.
        inner: of each unit, if units are groups, the spaces of the channels inside it.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    inner: tuple[tuple["Space", ...], ...] = ()


Permutation = dict[Space, Tensor]  # of each space that moves, (units,): unit u of the result is unit pi[u]


@dataclass
class Spaces:
    """What `find_spaces` found: all hidden-channel permutations; `refused` says which were proposed in vain, and why."""

    spaces: list[Space]
    refused: dict[str, str] = field(default_factory=dict)

    def random(self, seed: int) -> Permutation:
        """A uniformly random order of every space."""
        generator = torch.Generator().manual_seed(seed)
        return {space: torch.randperm(space.size, generator=generator) for space in self.spaces}

    def match(self, a: dict[str, Tensor], b: dict[str, Tensor]) -> Permutation:
        """`match` over these spaces."""
        return match(self.spaces, a, b)


def find_spaces(network: nn.Module, x: Tensor) -> Spaces:
    """The hidden-channel permutations that leave a network's function alone.

    The data flow of a random copy proposes them (`channels`); each is then confirmed by the logits of a copy in general
    position, in float64.

    Args:
        network: any; its weights do not matter. x: two or more images (B, 3, n, n) that it takes.

    Raises:
        Unsupported: no permutation of hidden channels is found.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5)).double()
    >>> x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    >>> found = find_spaces(net, x)
    >>> [(space.name, space.size) for space in found.spaces]
    [('0', 8)]
    >>> moved = apply(net, found.random(seed=0))
    >>> bool((moved(x) - net(x)).abs().max() < 1e-12), bool((moved[0].weight - net[0].weight).abs().max() > 0.1)
    (True, True)
    """
    proposed = _spaces(channels(_random(network, x), x))
    found = Spaces([])
    chosen = {
        space: _cycle(order) for space, order in Spaces(proposed).random(0).items()
    }  # which leaves no unit in place
    model, x = general_position(network, x), x.double()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}

    def logits(permutation: Permutation) -> Tensor:
        model.train().eval()  # forgets the attention biases that it keeps
        return functional.call(model, permute(tensors, permutation), x)

    def settle(some: Sequence[Space]) -> None:
        """All at once, and by halves where the whole changes the logits."""
        moved = float((logits({space: chosen[space] for space in some}) - still).norm() / still.norm())
        if moved <= EXACT:
            found.spaces.extend(some)
        elif len(some) == 1:
            found.refused[some[0].name] = f"permuting its {some[0].size} units changes the logits by {moved:.2g}"
        else:
            settle(some[: len(some) // 2])
            settle(some[len(some) // 2 :])

    with torch.no_grad():
        still = logits({})
        if proposed:
            settle(proposed)
    if not found.spaces:
        why = next(iter(found.refused.values()), "its data flow shows none")
        raise Unsupported(f"{type(network).__name__}: no hidden channels can be permuted ({why})")
    return found


def _cycle(order: Tensor) -> Tensor:
    """The permutation that takes each unit to the next in this order, and the last to the first."""
    return torch.empty_like(order).scatter_(0, order, order.roll(-1))


def _random(network: nn.Module, x: Tensor, seed: int = 0) -> nn.Module:
    """A copy with random weights whose activations are of order one and pass on gradients."""
    model = blank(network, seed).eval()
    reset_batch_norm(model, [x])
    for norm in _norms(model):  # pooled, few images hardly differ: by that alone, gates would saturate
        norm.running_var.add_(WIDER * norm.running_mean.square())
    return model


def _norms(model: nn.Module) -> list[Any]:
    """Every batch norm that keeps running statistics."""
    return [one for one in model.modules() if isinstance(one, _BatchNorm) and one.running_mean is not None]


@torch.no_grad()
def general_position(network: nn.Module, x: Tensor) -> nn.Module:
    """A float64 copy with random weights and statistics, no two alike and none special: what holds for it, holds for all.

    Its weights are others than those that propose spaces: units that no image excites there are excited here.

    Args:
        x: images (B, 3, n, n), on which activations keep their size.
    """
    model = blank(network, seed=1).eval().double()
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        # The others are random already, and larger ones saturate attention: it would hide its channels.
        if is_vector(p):
            p.add_(0.2 * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p))

    def near_its_input(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        """Statistics follow what a norm is really given, after those before it: no error grows from block to block."""
        z = inputs[0].transpose(0, 1).flatten(1)
        mean, variance = z.mean(1), z.var(1, correction=0)
        noise = torch.rand(mean.shape, generator=generator, dtype=torch.float64).to(z)
        norm.running_mean.copy_(mean + (noise - 0.5) * variance.sqrt())
        norm.running_var.copy_((0.5 + noise) * variance + WIDER * mean.square())

    hooks = [norm.register_forward_pre_hook(near_its_input) for norm in _norms(model)]
    model(x.double())
    for hook in hooks:
        hook.remove()
    return model.train().eval()  # forgets the attention biases that it keeps


def _spaces(found: Channels) -> list[Space]:
    """Channels that are in the same places and groups can be exchanged, and so can groups that are."""
    where: dict[int, list[tuple[Place, int]]] = defaultdict(list)
    for place, classes in found.places.items():
        for position, one in enumerate(classes.tolist()):
            where[one].append((place, position))
    tags: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for i, grouping in enumerate(found.groups):
        for g, classes in enumerate(grouping):
            for one in classes.tolist():
                tags[one].append((i, g))
    alike: dict[object, list[int]] = defaultdict(list)
    for one, positions in where.items():
        if one not in found.fixed:
            alike[tuple(place for place, _ in positions), tuple(tags[one])].append(one)
    channel_spaces = {one[0]: _space([[c] for c in one], where) for one in alike.values() if len(one) > 1}
    owner = {c: channel_spaces[one[0]] for one in alike.values() if len(one) > 1 for c in one}
    rank = {(place.tensor, place.axis): i for i, place in reversed(list(enumerate(found.places)))}
    both = [*_group_spaces(found, where, owner), *channel_spaces.values()]  # a group before what is inside it
    return sorted(
        (one for one in both if one.members),
        key=lambda one: rank[one.members[0].place.tensor, one.members[0].place.axis],
    )


def _space(
    units: Sequence[Sequence[int]], where: dict[int, list[tuple[Place, int]]], inner: Iterable[tuple[Space, ...]] = ()
) -> Space:
    """Units, each of some classes that are in the same places; whole groups keep the inputs inside them in place."""
    grouped = len(units[0]) > 1
    positions: dict[Place, list[list[int]]] = {}
    for u, unit in enumerate(units):
        for one in unit:
            for place, position in where[one]:
                if not (grouped and place.rows):
                    positions.setdefault(place, [[] for _ in units])[u].append(position)
    members = tuple(Member(place, torch.tensor([sorted(one) for one in index])) for place, index in positions.items())
    name = members[0].place.tensor.removesuffix(".weight") if members else ""
    if members and members[0].place.rows:
        name += f"[{members[0].place.rows[0]}]"
    return Space(name, len(units), members, tuple(inner))


def _group_spaces(found: Channels, where: dict[int, list[tuple[Place, int]]], owner: dict[int, Space]) -> list[Space]:
    """Whole groups of grouped convolutions, and whole heads, as units: those that share a channel are one unit."""
    root: dict[object, object] = {}

    def top(one: object) -> object:
        while root.setdefault(one, one) != one:
            one = root[one]
        return one

    for i, grouping in enumerate(found.groups):
        for g, classes in enumerate(grouping):
            for one in classes.tolist():
                root[top(one)] = top(("group", i, g))
    units: dict[object, list[int]] = defaultdict(list)
    for one in where:
        if one in root:
            units[top(one)].append(one)
    alike: dict[object, list[list[int]]] = defaultdict(list)
    for unit in units.values():
        if not found.fixed & set(unit):
            signature: dict[tuple[str, int], int] = defaultdict(int)
            for one in unit:
                for place, _ in where[one]:
                    signature[place.tensor, place.axis] += place.rows is None
            alike[tuple(sorted(signature.items()))].append(unit)
    spaces = []
    for group in alike.values():
        if len(group) > 1:
            inner = [tuple(dict.fromkeys(owner[one] for one in unit if one in owner)) for unit in group]
            same = len({tuple(space.size for space in one) for one in inner}) == 1
            space = _space(group, where, inner if same else ())
            space.name += " (groups)"
            spaces.append(space)
    return spaces


def permute(tensors: dict[str, Tensor], permutation: Permutation) -> dict[str, Tensor]:
    """Tensors by name with their units in another order: unit u of the result is unit pi[u]. Names unknown stay.

    The map is orthogonal, and acts on weights, gradients and directions alike. Groups are put in order first, then the
    channels inside them.
    """
    moved = dict(tensors)
    copied: set[str] = set()
    for space, pi in sorted(permutation.items(), key=lambda item: not item[0].inner):
        for member in space.members:
            name, place = member.place.tensor, member.place
            if name not in moved:
                continue
            if name not in copied:
                moved[name] = moved[name].clone()
                copied.add(name)
            part = (moved[name] if place.rows is None else moved[name][slice(*place.rows)]).movedim(place.axis, 0)
            index = member.index.to(part.device)
            part[index.flatten()] = part[index[pi.to(part.device)].flatten()]
    return moved


def apply(module: nn.Module, permutation: Permutation) -> nn.Module:
    """A copy of a network with its hidden channels in another order, running statistics too: the same function."""
    moved = copy.deepcopy(module)
    with torch.no_grad():
        own = {**dict(moved.named_parameters()), **dict(moved.named_buffers())}
        for name, tensor in permute({name: t.detach() for name, t in own.items()}, permutation).items():
            own[name].copy_(tensor)
    return moved


def match(spaces: Sequence[Space], a: dict[str, Tensor], b: dict[str, Tensor]) -> Permutation:
    """The order of b's hidden channels in which its weights are most like a's.

    argmax_P <a, P b> by coordinate descent, an exact linear assignment a space (Ainsworth, Hayase & Srinivasa 2023, ICLR:
    weight matching). It starts from the order of b, and from one built up from the image to the logits; the better end
    is taken. Groups and heads are compared at the best order of the channels inside them.

    Args:
        spaces: of the architecture. a, b: parameters by name; those in which no space has a part do not matter.

    Returns:
        P, for `permute` and `apply`.
    """
    ends = []
    for forward in (True, False):
        descent = _Descent(spaces, a, b)
        if forward:
            descent.build()
        ends.append((descent.descend(), descent.permutation))
    return max(ends, key=lambda end: end[0])[1]


class _Descent:
    """Weight matching from one start: `moved` is b in the order found so far."""

    def __init__(self, spaces: Sequence[Space], a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
        self.spaces = spaces
        used = {member.place.tensor for space in spaces for member in space.members} & a.keys() & b.keys()
        self.a = {name: a[name].detach().double() for name in used}
        self.moved = {name: b[name].detach().double() for name in used}
        self.permutation: Permutation = {space: torch.arange(space.size) for space in spaces}

    def descend(self) -> float:
        """Reorder space by space until none is improved; returns <a, P b>."""
        for _ in range(SWEEPS):
            before = self._product(self.a)
            for space in self.spaces:
                self._reorder(space, set(self.a), keep=True)
            if self._product(self.a) <= before + 1e-12 * abs(before):
                break
        return self._product(self.a)

    def build(self) -> None:
        """Order each space by those tensors alone whose other axes are in order already."""
        waiting = set(self.spaces)
        touching: dict[str, list[tuple[int, Space]]] = defaultdict(list)
        for space in self.spaces:
            for member in space.members:
                touching[member.place.tensor].append((member.place.axis, space))
        for space in self.spaces:
            own = {member.place.tensor: member.place.axis for member in space.members}
            settled = {
                name
                for name in self.a
                if all(axis == own.get(name, axis) or other not in waiting for axis, other in touching[name])
            }
            self._reorder(space, settled, keep=False)
            waiting.discard(space)

    def _product(self, names: Iterable[str]) -> float:
        """<a, P b> over the tensors of these names."""
        return sum(float((self.a[name] * self.moved[name]).sum()) for name in sorted(names))

    def _reorder(self, space: Space, names: set[str], keep: bool) -> None:
        """The best order of one space, judged by the tensors of these names; `keep`: unless it is worse in all."""
        pi = _assign(self._likeness(space, space, names) if not space.inner else self._group_likeness(space, names))[0]
        if bool((pi == torch.arange(space.size)).all()):
            return
        inside = dict.fromkeys(one for unit in space.inner for one in unit)
        part = {member.place.tensor for one in (space, *inside) for member in one.members} & set(self.a)
        before = (self.moved, dict(self.permutation), self._product(part))
        self.moved = permute(self.moved, {space: pi})
        self.permutation[space] = self.permutation[space][pi]
        for u, v in enumerate(pi.tolist() if space.inner else []):  # the channels inside a group go with it
            for here, there in zip(space.inner[u], space.inner[v], strict=True):
                self.permutation[here] = before[1][there]
        for one in inside:
            self._reorder(one, names, keep)
        if keep and self._product(part) <= before[2] + 1e-12 * abs(before[2]):
            self.moved, self.permutation = before[:2]

    def _likeness(self, here: Space, there: Space, names: set[str]) -> Tensor:
        """<a_u, b_v> for each unit u of one space and v of another (or the same) one, (units, units)."""
        found = torch.zeros(here.size, there.size, dtype=torch.float64)
        for one, other in zip(here.members, there.members, strict=True):
            if one.place.tensor in names:
                found += (one.rows(self.a[one.place.tensor]) @ other.rows(self.moved[other.place.tensor]).T).cpu()
        return found

    def _group_likeness(self, space: Space, names: set[str]) -> Tensor:
        inside = {(member.place.tensor, member.place.axis) for one in space.inner[0] for member in one.members}
        plain = Space("", space.size, tuple(m for m in space.members if (m.place.tensor, m.place.axis) not in inside))
        found = self._likeness(plain, plain, names)
        for u, row in enumerate(space.inner):
            for v, column in enumerate(space.inner):
                for here, there in zip(row, column, strict=True):
                    found[u, v] += _assign(self._likeness(here, there, names))[1]
        return found


def _assign(likeness: Tensor) -> tuple[Tensor, float]:
    """The partner of each row, and the sum over them."""
    table = likeness.numpy()
    rows, columns = linear_sum_assignment(table, maximize=True)
    return torch.from_numpy(columns.astype(np.int64)), float(table[rows, columns].sum())
