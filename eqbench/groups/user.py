"""A user's own groups, from one Python file that conf/group/<id>.yaml names: loaded, and checked before anything runs.

`conf/group/half_turn.yaml` is `{action: HalfTurn, file: mygroup.py}`, and `mygroup.py` is:

    from eqbench.groups import FiniteGroup

    class HalfTurn(FiniteGroup):
        exact = True

        def elements(self):
            return [0, 1]

        def generators(self):
            return [1]

        def multiply(self, g, h):
            return (g + h) % 2

        def keeps_shape(self, g):
            return True

        def act(self, x, g):
            return x.flip(-2, -1) if g else x

        def act_kernels(self, w, g):  # so that conv(gx, gw) = g conv(x, w): the twin, and so the floor, needs it
            return self.act(w, g)

A Lie group that moves pixels is a subclass of `eqbench.groups.spatial.SpatialGroup` with `unit`, `interpolation`,
`generators`, `act`, `field` and `sweep`. Mistakes in the file, the group law included, are found before any job starts.
"""

import hashlib
import sys
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from eqbench.errors import Failed, Misfit, Unsupported, UserError, one_line, out_of_memory, unknown
from eqbench.groups.base import FiniteGroup, Group, LieGroup

if TYPE_CHECKING:
    from torch import Tensor

SIDE = 48  # px of the images that the checks use: a multiple of many small numbers
LARGEST = 128  # elements: the law is checked on every pair


class Broken(Exception):
    """How a group breaks its contract."""


def sha256(file: str) -> str:
    """The digest of a file of groups.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{file}: {error.strerror} (working folder: {Path.cwd()})") from None


def load(file: str, name: str) -> Group:
    """The group `name` of a file: an instance, or a subclass that takes no arguments, of FiniteGroup or LieGroup.

    Raises:
        UserError: there is none, or it breaks the contract; names the file.
    """
    return _load(file, name, sha256(file))


@cache
def _load(file: str, name: str, digest: str) -> Group:
    module = _module(file, digest)
    own = [key for key, value in vars(module).items() if _is_group(value) and key not in ("FiniteGroup", "LieGroup")]
    if not hasattr(module, name):
        raise UserError(f"{file}: {unknown('group', name, own)}")
    found: Any = getattr(module, name)
    if not _is_group(found):
        raise UserError(
            f"{file}: {name}: expected a subclass or an instance of FiniteGroup or LieGroup, got {found!r:.80}"
        )
    try:
        group: Group = found() if isinstance(found, type) else found
        group.name = f"{name} ({file})"
        if not isinstance(getattr(group, "exact", None), bool):
            raise Broken("exact: expected True or False: whether it maps pixels to pixels, without interpolation")
        if isinstance(group, FiniteGroup):
            _check_law(group)
            _check_action(group)
        else:
            assert isinstance(group, LieGroup)
            _check_flow(group)
    except Exception as error:  # whatever it is, it is the file's
        what = "" if isinstance(error, Broken) else f"{type(error).__name__}: "
        raise UserError(f"{file}: {name}: {what}{one_line(error)}") from None
    for method in ("act", "act_features", "velocity"):
        if hasattr(group, method):
            vars(group)[method] = _guarded(getattr(group, method), f"{file}: {name}: {method}")
    return group


def _guarded(method: Callable[..., "Tensor"], where: str) -> Callable[..., "Tensor"]:
    """The method; where it fails on images that the checks did not try, it says so as a group that refuses them."""

    @wraps(method)
    def guarded(x: "Tensor", *arguments: Any, **named: Any) -> "Tensor":
        try:
            return method(x, *arguments, **named)
        except (UserError, Unsupported, Failed, MemoryError):
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            raise Misfit(f"{where} on {tuple(x.shape)}: {type(error).__name__}: {one_line(error)}") from error

    return guarded


@cache
def _module(file: str, digest: str) -> ModuleType:
    module = ModuleType(f"eqbench_group_{digest[:16]}")
    module.__file__ = file
    sys.modules[module.__name__] = module  # where dataclasses look their annotations up
    try:
        exec(compile(Path(file).read_bytes(), file, "exec"), vars(module))
    except (Exception, SystemExit) as error:
        raise UserError(f"{file}: {type(error).__name__}: {one_line(error)}") from None
    return module


def _is_group(value: Any) -> bool:
    return issubclass(value if isinstance(value, type) else type(value), (FiniteGroup, LieGroup))


def _check_law(group: FiniteGroup) -> None:
    """Identity, closure, generation, associativity (Light's test, on the generators), and left inverses."""
    elements, generators = list(group.elements()), list(group.generators())
    known = set(elements)
    if not 1 <= len(known) == len(elements) <= LARGEST:
        raise Broken(f"elements: expected 1 to {LARGEST} different ones, got {len(elements)} ({len(known)} different)")
    identity = elements[0]
    for g in elements:
        if group.multiply(g, identity) != g or group.multiply(identity, g) != g:
            raise Broken(f"group law: the first element {identity!r} is not the identity of {g!r}")
        products = [group.multiply(h, g) for h in elements]
        if not known.issuperset(products):
            raise Broken(f"group law: a product with {g!r} is not one of the elements")
        if identity not in products:
            raise Broken(f"group law: {g!r} has no inverse")
    reached = {identity}
    for _ in elements:
        reached |= {group.multiply(g, h) for g in generators for h in reached}
    if reached != known:
        raise Broken(f"generators: they generate {len(reached)} of {len(known)} elements")
    for a in generators:
        for g in elements:
            for h in elements:
                if group.multiply(group.multiply(g, a), h) != group.multiply(g, group.multiply(a, h)):
                    raise Broken(f"group law: ({g!r} {a!r}) {h!r} is not {g!r} ({a!r} {h!r})")


def _check_action(group: FiniteGroup) -> None:
    """act(x, e) = x, and for exact groups act(x, gh) = act(act(x, h), g), on a random image; unless its size is refused."""
    x = _image()
    elements = group.elements()
    try:
        moved = {h: _alike(group.act(x, h), x, "act") for h in elements}
    except Misfit:
        return
    if not _close(moved[elements[0]], x):
        raise Broken("act: the identity changes images")
    for g in group.generators() if group.exact else ():
        for h in elements:
            if not _close(group.act(moved[h], g), moved[group.multiply(g, h)]):
                raise Broken(f"act: act(x, {g!r} {h!r}) is not act(act(x, {h!r}), {g!r})")


def _check_flow(group: LieGroup) -> None:
    """The velocity points where the finite action goes: their cosine on a smooth image, 8 px from its border."""
    x = _image()
    if not isinstance(group.unit, str):
        raise Broken(f"unit: expected a string, got {group.unit!r}")
    for generator in group.generators():
        sweep = list(group.sweep(generator, SIDE))
        if 0 not in sweep or len(sweep) < 2:
            raise Broken(f"sweep: expected 0 and more values of t for {generator!r}, got {sweep}")
        try:
            velocity = _alike(group.velocity(x, generator), x, "velocity")
            t = max(map(abs, sweep)) / 100
            ends = [_alike(group.act(x, (generator, end)), x, "act") for end in (-t, t)]
        except Misfit:
            continue
        slope, v = ((y[..., 8:-8, 8:-8]).flatten() for y in ((ends[1] - ends[0]) / (2 * t), velocity))
        cosine = float(slope @ v / (slope.norm() * v.norm()).clamp(min=1e-12))
        if slope.norm() > 1e-3 * x.norm() and not (cosine > 0.9 and 0.5 < float(v.norm() / slope.norm()) < 2):
            raise Broken(
                f"velocity: it is not the derivative of act at t = 0 along {generator!r} (cosine {cosine:.2f})"
            )


def _alike(y: "Tensor", x: "Tensor", method: str) -> "Tensor":
    if getattr(y, "shape", None) != x.shape or y.dtype != x.dtype or not y.isfinite().all():
        got = f"{tuple(y.shape)} {y.dtype}" if hasattr(y, "shape") else type(y).__name__
        raise Broken(f"{method}: expected finite {tuple(x.shape)} {x.dtype} for an image of that shape, got {got}")
    return y


def _close(y: "Tensor", z: "Tensor") -> bool:
    return bool((y - z).abs().max() < 1e-5)


def _image() -> "Tensor":
    """A smooth image (1, 3, 48, 48) in [0, 1] without symmetries."""
    import torch

    y, x = torch.meshgrid(*[torch.arange(SIDE) / SIDE] * 2, indexing="ij")
    waves = [torch.sin(7 * x + 4 * y + c) * torch.cos(5 * y - 3 * x * y + 2 * c) for c in range(3)]
    return (torch.stack(waves)[None] + 1) / 2
