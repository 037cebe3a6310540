"""A network's layers and their derivatives along directions of image space, by the first method that its operations have."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from eqbench.errors import Failed, one_line, out_of_memory
from eqbench.features import Taps
from eqbench.probes.derivatives.rules import Rules

Maps = dict[str, Tensor]
Method = Callable[["Jacobian", Tensor, Tensor], tuple[Maps, Maps]]
STEPS = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)  # of central differences: root mean square changes of the image
AGREEMENT = 0.25  # relative difference from a derivative that is the differences' own, of kinks within the step
ROUNDING = 1e-4  # of the logits: changes below are no evidence
TINY = 1e-30
DIRECTIONS = 16  # at most, at once
PIXELS = {"cpu": 2**20}  # images x directions x pixels at once: about what fits in a cache
ELSEWHERE = 2**25


@contextmanager
def _differentiable() -> Iterator[None]:
    """Fused attention has no forward derivative: use the plain one; and the rules that are faster than torch's."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), Rules():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def batched(own: "Jacobian", x: Tensor, v: Tensor) -> tuple[Maps, Maps]:
    """Forward mode, all directions at once: the layers themselves are computed once."""
    own.forwards += len(x)
    own.jvps += v.shape[:2].numel()
    axes: Any = (None, 0)
    with _differentiable(), own.layers() as layers:
        return vmap(lambda one: jvp(layers, (x,), (one,))[:2], out_dims=axes)(v)


def one_by_one(own: "Jacobian", x: Tensor, v: Tensor) -> tuple[Maps, Maps]:
    """Forward mode, a direction at a time."""
    own.forwards += len(x) * len(v)
    own.jvps += v.shape[:2].numel()
    with _differentiable(), own.layers() as layers:
        found: list[tuple[Maps, Maps]] = [jvp(layers, (x,), (one,))[:2] for one in v]
    return found[0][0], {name: torch.stack([dy[name] for _, dy in found]) for name in found[0][0]}


def differences(own: "Jacobian", x: Tensor, v: Tensor) -> tuple[Maps, Maps]:
    """Central differences (f(x + ev) - f(x - ev)) / 2e in image space: two forwards a direction, any operation.

    e is such that ev has the same root mean square, `own.step`, for every image and direction.
    """
    own.forwards += len(x) * (1 + 2 * len(v))
    size = v.square().mean((-3, -2, -1), keepdim=True).sqrt()
    e = own.step / size.clamp(min=1e-12)
    with torch.no_grad(), own.layers() as layers:
        y, found = layers(x), []
        for one, step in zip(v, e, strict=True):
            after, before = layers(x + step * one), layers(x - step * one)
            found.append({name: (after[name] - before[name]) / (2 * step) for name in y})
    return y, {name: torch.stack([dy[name] for dy in found]) for name in y}


METHODS: dict[str, Method] = {
    "forward mode, all directions at once": batched,
    "forward mode, a direction at a time": one_by_one,
    "central differences": differences,
}


@dataclass
class Jacobian:
    """J v for every layer of a network.

    Attributes:
        method: a key of METHODS. step: of central differences. note: why they are used and how exact they are, if they are.
        forwards, jvps: images that went through the network, and directions times images that were differentiated along.
    """

    network: nn.Module
    taps: Taps
    method: str = ""
    step: float = STEPS[0]
    note: str | None = None
    forwards: int = 0
    jvps: int = 0

    @contextmanager
    def layers(self) -> Iterator[Callable[[Tensor], Maps]]:
        """Inside, the network as a function of images (B, 3, n, n) that gives all its layers."""
        with self.taps.recording() as maps:

            def layers(x: Tensor) -> Maps:
                self.network(x)
                return dict(maps)

            yield layers

    def choose(self, x: Tensor, v: Tensor) -> None:
        """Take the first method that works on the images x (B, 3, n, n) along v (B, 3, n, n) and agrees with differences.

        Raises:
            Failed: derivatives are not finite.
        """
        reference = list(self._differences(x, v))
        refusals = []
        for name, method in METHODS.items():
            self.method = name
            if method is differences:
                break
            jvps = self.jvps
            try:
                dy = method(self, x, v[None])[1]["logits"][0]
            except (RuntimeError, TypeError, ValueError, AttributeError, AssertionError) as error:
                if out_of_memory(error):
                    raise
                self.jvps = jvps
                refusals.append(one_line(error)[:100])
                continue
            if not dy.isfinite().all():
                raise Failed(f"the derivative of the logits is not finite ({name})")
            gaps = [float((dy - near).norm() / (near.norm() + noise + TINY)) for near, noise in reference]
            if min(gaps) < AGREEMENT:
                return
            refusals.append(f"{name} is off by {min(gaps):.2g} of central differences")
        gaps = [float((a - b).norm() / (b.norm() + noise + TINY)) for (a, _), (b, noise) in pairwise(reference)]
        best = min(range(len(gaps)), key=gaps.__getitem__)
        self.step = STEPS[best + 1]
        self.note = f"by central differences, exact to about {gaps[best]:.1g}: {refusals[-1]}"

    def _differences(self, x: Tensor, v: Tensor) -> Iterator[tuple[Tensor, float]]:
        """The logits' derivative by central differences of each of STEPS, and the norm of what rounding may do to it."""
        size = v.square().mean((-3, -2, -1)).sqrt().clamp(min=1e-12)
        for self.step in STEPS:
            y, dy = differences(self, x, v[None])
            noise = ROUNDING * y["logits"].flatten(1).norm(dim=1) * size / self.step
            yield dy["logits"][0], float(noise.norm())

    def __call__(self, x: Tensor, v: Tensor) -> tuple[Maps, Maps]:
        """Every layer (B, C, h, w) of the images x (B, 3, n, n), and its derivatives (T, B, C, h, w) along v (T, B, 3, n, n)."""
        found = [METHODS[self.method](self, x, part) for part in v.split(DIRECTIONS)]
        if len(found) == 1:
            return found[0]
        return found[0][0], {name: torch.cat([dy[name] for _, dy in found]) for name in found[0][0]}

    @staticmethod
    def images(x: Tensor, directions: int) -> int:
        """How many of the images x to take at once: from shapes alone, so that no number depends on what ran before."""
        held = PIXELS.get(x.device.type, ELSEWHERE)
        return max(1, held // (min(directions, DIRECTIONS) * x.shape[-2:].numel()))
