"""Checks of the arithmetic that every curvature number passes first."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from eqbench.curvature.gauss_newton import GaussNewton
from eqbench.curvature.hessian import Hessian
from eqbench.curvature.objective import Objective
from eqbench.errors import Failed, Unsupported

# Largest relative residuals that the float64 checks accept. The first is wide, for kinks of ReLU within its steps; what
# it is there to catch (a detached branch, a wrong backward) is of order one.
SATURATED = 1e-7  # nats: below it, float32 knows the margins of the logits and nothing else
GUARDS = {"directional derivative": 1e-3, "mode agreement": 1e-5, "self-adjointness": 1e-8, "adjointness": 1e-8}


def guard(objective: Objective, images: int = 4, second: bool = True) -> dict[str, float]:
    """Check the arithmetic in float64 on a few images; refuse to go on where it does not hold.

    Relative residuals of: the directional derivative (L(t + eu) - L(t - eu)) / 2e against g'u (wrong first derivatives);
    double backward against jvp(grad) (wrong derivative formulas); u'Hv against v'Hu (self-adjointness). They are taken
    beside the weights, not at them: freshly initialised networks sit on the kinks of their ReLUs, where no derivative is.
    A parameter with no gradient at all must have no effect (`silent`).

    Args:
        images: on how many of the first batch.
        second: check second derivatives; otherwise, for Gauss-Newton products, w'(Ju) against u'(J'w) (adjointness).

    Returns:
        The residual of each check.

    Raises:
        Unsupported: the loss is too small to be differentiated, or an operation has not the derivatives that are needed.
        Failed: names the check, its residual and its bound, or the parameter that gets no gradient.
    """
    loss = objective.value()
    if loss < SATURATED:
        raise Unsupported(f"the loss is {loss:.1g}: its derivatives would be rounding")
    exact = objective.first(images).double()
    generator = torch.Generator().manual_seed(0)

    def noise(shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(exact.device)

    with torch.no_grad():
        for p in exact.module.parameters():
            p.add_(1e-2 * noise(p.shape) * (p.square().mean().sqrt() + 1e-2))
    u, v = noise(exact.theta.shape), noise(exact.theta.shape)
    u, v = u / u.norm(), v / v.norm()
    residuals = {"directional derivative": _directional_residual(exact, u)}
    residuals |= _second_residuals(exact, u, v) if second else {"adjointness": _adjointness_residual(exact, u, noise)}
    for name, residual in residuals.items():
        if not residual <= GUARDS[name]:
            raise Failed(
                f"curvature check '{name}' failed: relative residual {residual:.2g} > {GUARDS[name]:g} in float64"
            )
    silent(exact)
    return residuals


def silent(objective: Objective) -> list[str]:
    """Names of the parameters whose gradient is exactly zero, each of which a finite change proves to have no effect.

    Unused parameters and structural nulls (a key bias, a dead unit) pass: moving them by a thousandth leaves the logits as
    they are, in evaluation and in training mode. A stale cache or a detached part does not: caches are not used in training.

    Raises:
        Failed: the logits depend on a parameter that gets no gradient; names it.
    """
    gradient = objective.named(objective.gradient()[1])
    names = [name for name, part in gradient.items() if not part.any()]
    if names:
        x = objective.batches[0][0]
        states = {training: _logits(objective, x, training) for training in (False, True)}
        for name in names:
            for training, before in states.items():
                if not isinstance(before, Tensor):  # auxiliary heads in training
                    continue
                change = float((_logits(objective, x, training, name) - before).norm())
                if change > 1e-10 * float(before.norm()):
                    raise Failed(
                        f"the logits depend on '{name}', which gets no gradient: detached, or cached and stale"
                    )
    return names


def _logits(objective: Objective, x: Tensor, training: bool, moved: str | None = None) -> Any:
    """f(x) in this mode, whatever it gives, dropout by the same draws each time, running statistics left as they are.

    Args:
        moved: the parameter that is moved by a thousandth first.
    """
    module = copy.deepcopy(objective.module.train().eval()).train(training)  # without caches, which cannot be copied
    with torch.no_grad(), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        if moved is not None:
            p = module.get_parameter(moved)
            p.add_(1e-3 * (p.square().mean().sqrt() + 1e-3) * torch.linspace(-1, 1, p.numel()).to(p).view_as(p))
        torch.manual_seed(0)
        return module(x)


def _second_residuals(exact: Objective, u: Tensor, v: Tensor) -> dict[str, float]:
    hessian = Hessian(exact)
    hu, hv = hessian @ u, hessian @ v
    scale = max(float(hu.norm()), float(hv.norm()), 1e-30)
    return {
        "mode agreement": float((hv - hessian.forward_over_reverse(v)).norm()) / scale,
        "self-adjointness": abs(float(u @ hv - v @ hu)) / scale,
    }


def _adjointness_residual(exact: Objective, u: Tensor, noise: Callable[[torch.Size], Tensor]) -> float:
    product, (x, _) = GaussNewton(exact), exact.batches[0]
    pushed = product.pushed(x, u)[1]
    w = noise(pushed.shape)
    pulled = product.pulled(x, w)
    return abs(float((pushed * w).sum() - pulled @ u)) / max(float(pulled.norm()), 1e-30)


def _directional_residual(objective: Objective, u: Tensor) -> float:
    """The smallest disagreement over three steps: a kink inside one step (ReLU, max-pool) does not fail the check."""
    theta, (_, gradient) = objective.theta, objective.gradient()
    slope = float(gradient @ u)
    scale = max(abs(slope), float(gradient.norm()) / objective.size**0.5, 1e-30)
    steps = (1e-4, 1e-5, 1e-6)
    slopes = [(objective.value(theta + e * u) - objective.value(theta - e * u)) / (2 * e) for e in steps]
    return min(abs(found - slope) / scale for found in slopes)
