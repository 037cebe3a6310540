"""Checks of the arithmetic that every curvature number passes first."""

import torch
from torch import Tensor

from eqbench.curvature.hessian import Hessian
from eqbench.curvature.objective import Objective
from eqbench.errors import Failed

# Largest relative residuals that the float64 checks accept. The first is wide, for kinks of ReLU within its steps; what
# it is there to catch (a detached branch, a wrong backward) is of order one.
GUARDS = {"directional derivative": 1e-3, "mode agreement": 1e-5, "self-adjointness": 1e-8}


def guard(objective: Objective, images: int = 4) -> dict[str, float]:
    """Check the arithmetic in float64 on a few images; refuse to go on where it does not hold.

    Relative residuals of: the directional derivative (L(t + eu) - L(t - eu)) / 2e against g'u (wrong first derivatives);
    double backward against jvp(grad) (wrong derivative formulas); u'Hv against v'Hu (self-adjointness). They are taken
    beside the weights, not at them: freshly initialised networks sit on the kinks of their ReLUs, where no derivative is.

    Returns:
        The residual of each check.

    Raises:
        Failed: names the check, its residual and its bound.
    """
    exact = objective.first(images).double()
    generator = torch.Generator().manual_seed(0)

    def noise(shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(exact.device)

    with torch.no_grad():
        for p in exact.module.parameters():
            p.add_(1e-2 * noise(p.shape) * (p.square().mean().sqrt() + 1e-2))
    hessian = Hessian(exact)
    u, v = noise(exact.theta.shape), noise(exact.theta.shape)
    u, v = u / u.norm(), v / v.norm()
    hu, hv = hessian @ u, hessian @ v
    scale = max(float(hu.norm()), float(hv.norm()), 1e-30)
    residuals = {
        "directional derivative": _directional_residual(exact, u),
        "mode agreement": float((hv - hessian.forward_over_reverse(v)).norm()) / scale,
        "self-adjointness": abs(float(u @ hv - v @ hu)) / scale,
    }
    for name, residual in residuals.items():
        if not residual <= GUARDS[name]:
            raise Failed(
                f"curvature check '{name}' failed: relative residual {residual:.2g} > {GUARDS[name]:g} in float64"
            )
    return residuals


def _directional_residual(objective: Objective, u: Tensor) -> float:
    """The smallest disagreement over three steps: a kink inside one step (ReLU, max-pool) does not fail the check."""
    theta, (_, gradient) = objective.theta, objective.gradient()
    slope = float(gradient @ u)
    scale = max(abs(slope), float(gradient.norm()) / objective.size**0.5, 1e-30)
    steps = (1e-4, 1e-5, 1e-6)
    slopes = [(objective.value(theta + e * u) - objective.value(theta - e * u)) / (2 * e) for e in steps]
    return min(abs(found - slope) / scale for found in slopes)
