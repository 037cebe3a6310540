"""The largest value of a function on a ball, by projected gradient ascent with automatic step sizes (APGD)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MOMENTUM = 0.75
INCREASES = 0.75  # the share of steps that must have raised the value, for the step size to be kept
STALLED = 1e-3  # relative difference of values, within which the ascent has arrived


@dataclass(frozen=True)
class Ball:
    """{u: |u|_p <= radius} for p = 2 or infinity."""

    p: float
    radius: float

    def project(self, u: Tensor) -> Tensor:
        """The point of the ball nearest to u."""
        if math.isinf(self.p):
            return u.clamp(-self.radius, self.radius)
        return u * min(1.0, self.radius / max(float(u.double().norm()), 1e-300))

    def steepest(self, g: Tensor) -> Tensor:
        """The s that maximises <g, s> over |s|_p <= 1."""
        return g.sign() if math.isinf(self.p) else g / g.norm().clamp_min(torch.finfo(g.dtype).tiny)

    def edge(self, u: Tensor) -> Tensor:
        """The point of the ball's edge in the direction of u."""
        return self.radius * (u / u.abs().max() if math.isinf(self.p) else u / u.norm())


@dataclass
class Highest:
    """The largest value seen, and where; not finite where the function was not."""

    value: float
    at: Tensor


def checkpoints(steps: int) -> list[int]:
    """The steps after which the step size is judged, Croce & Hein 2020, sec. 3.1.

    >>> checkpoints(100)
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    places, before, at = [], 0.0, 0.22
    while math.ceil(at * steps) < steps:
        places.append(math.ceil(at * steps - 1e-9))
        before, at = at, at + max(at - before - 0.03, 0.06)
    return places


def ascend(function: Callable[[Tensor], tuple[float, Tensor]], ball: Ball, start: Tensor, steps: int) -> Highest:
    """The largest f(u) over a ball, from below: auto-PGD with momentum, step halving and restarts at the best point.

    z = P(u_k + eta s(u_k)); u_(k+1) = P(u_k + 0.75 (z - u_k) + 0.25 (u_k - u_(k-1))), s the steepest direction; eta begins
    at twice the radius, and is halved, with a return to the best point, at each checkpoint since the last of which fewer
    than 3/4 of the steps raised f, or neither eta nor the best value changed. Croce & Hein 2020, ICML, algorithm 1; here
    it also ends where between two checkpoints, twice in a row, all values were within 1e-3 of the best.

    Args:
        function: u (size,) -> f(u) and its gradient, f about zero at u = 0. start: in the ball. steps: at most.

    Returns:
        The best point; as soon as f or its gradient is not finite, that point, with a value that is not finite.

    >>> top = torch.tensor([5.0, 1.0, 0.5], dtype=torch.float64)
    >>> found = ascend(lambda u: (float(u @ (top * u)) / 2, top * u), Ball(2, 0.1), torch.full((3,), 0.05).double(), 20)
    >>> abs(found.value / (5.0 * 0.1**2 / 2) - 1) < 1e-4
    True
    """
    u = before = ball.project(start)
    value, gradient = function(u)
    best, slope = Highest(value, u), gradient  # and the gradient there
    eta, halved, raised, last, base = 2 * ball.radius, False, 0, 0, value
    lowest, flat = value, 0  # since the last checkpoint; how many in a row saw no difference
    places = set(checkpoints(steps))
    for k in range(1, steps + 1):
        if not (math.isfinite(value) and bool(gradient.isfinite().all())):
            return Highest(math.nan if math.isfinite(value) else value, u)
        step = ball.project(u + eta * ball.steepest(gradient)) - u
        if k > 1:
            step = MOMENTUM * step + (1 - MOMENTUM) * (u - before)
        before, u, earlier = u, ball.project(u + step), value
        value, gradient = function(u)
        raised, lowest = raised + (value > earlier), min(lowest, value)
        if not value <= best.value:  # also where it is not a number
            best, slope = Highest(value, u), gradient
        if k not in places:
            continue
        flat = flat + 1 if best.value - min(base, lowest) <= STALLED * abs(best.value) else 0
        if flat == 2:
            break
        halved = raised < INCREASES * (k - last) or (not halved and best.value == base)
        if halved:
            eta, u, before, value, gradient = eta / 2, best.at, best.at, best.value, slope
        base, lowest, raised, last = best.value, value, 0, k
    return best
