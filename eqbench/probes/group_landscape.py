"""Symmetry of the loss landscape: of weights, gradient and curvature under Q = P^-1 T_g, and of the way between them."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eqbench.curvature.guard import guard
from eqbench.curvature.hessian import Hessian
from eqbench.curvature.objective import Objective
from eqbench.errors import Failed, Unsupported
from eqbench.groups import FiniteGroup
from eqbench.groups.twin import ALIGNED
from eqbench.probes.base import Finding, Subject
from eqbench.probes.landscape.group_action import Actions, Reordering, actions
from eqbench.probes.landscape.group_scene import Scene
from eqbench.probes.landscape.group_stem import stem_pairing
from eqbench.probes.landscape.group_tangents import curvature_gaps, noise_ratio, norm_ratio
from eqbench.probes.landscape.interpolation import barriers, path_losses
from eqbench.results import Measure
from eqbench.schema import GroupLandscape
from eqbench.stats import Array, Statistic, at_ones, bootstrap, mean_interval

STILL = 1e-9  # relative size of theta_- below which the weights are symmetric already


def run(subject: Subject, group: FiniteGroup, placebo: FiniteGroup | None, conf: GroupLandscape) -> Finding:
    """Measure one network under the first generator g of a group, on the images X and their orbits {g^k x}.

    The curves are `residuals`, of Q, of T_g alone and of each random P; `path`, the mean loss between theta and Q theta, T_g
    theta and (random) Q theta; `action`: the size of the images, the order of Q, the mean eigenvalue tr H / n.

    Raises:
        Unsupported: the architecture takes no images, or an operation has no second derivative.
        Failed: the loss is not finite, or the guard found the derivatives wrong.
    """
    g = group.generators()[0]
    size, off = _aligned(subject, group, conf)
    scene = Scene.of(subject, group, g, size, conf)
    still, moved = scene.objective(1, 0), scene.objective(1, 1)
    guard(still)
    if not math.isfinite(still.value()):
        raise Failed(f"the loss is {still.value()}")
    found = Finding({})
    at = scene.gradients(still)
    if not at[0].any():
        raise Failed("the gradient is exactly zero in this dtype: the logits are saturated")
    found.metrics |= _logit_gap(scene, still, moved, conf)
    found.metrics["gradient_gap"] = norm_ratio(at[1] - at[0], at[0], scene.weights, noise_ratio(at[0]))
    gaps, trace, products = curvature_gaps(still, moved, conf)
    found.metrics |= gaps
    found.hvps = products
    unit = trace / still.size
    found.curves["action"] = [{"size": size, "mean_eigenvalue": unit}]
    pairs = stem_pairing(subject.network, group, g)
    found.metrics["stem_pairing"] = (
        Measure(pairs[0], null=pairs[1]) if pairs else Measure(None, reason="no convolution sees the image")
    )
    try:
        if off is not None:
            raise Unsupported(off)
        acting = actions(still, group, g, scene.images[:2], conf.probes)
    except Unsupported as reason:
        absent = {name: Measure(None, reason=str(reason)) for name in _WEIGHTS}
        found.metrics |= absent
        return found
    _certify(found, scene, still, acting, at)
    _transverse(found, scene, still, acting, at.mean(0), unit, conf)
    _paths(found, scene, subject.network, acting, conf)
    return found


# Numbers that need the action on weights.
_WEIGHTS = ["weight_residual", "gradient_residual", "commutator", "transverse_curvature", "transverse_ratio"]
_WEIGHTS += [
    "transverse_ratio_bare",
    "symmetry_price",
    "symmetry_price_bare",
    "symmetry_barrier",
    "symmetry_barrier_bare",
]


def _aligned(subject: Subject, group: FiniteGroup, conf: GroupLandscape) -> tuple[int, str | None]:
    """The size at which the architecture's own grid is symmetric; else the native one, and why."""
    size, error = subject.aligned(group, conf.aligned_below, conf.aligned_above)
    if error < ALIGNED:
        return size, None
    low, high = max(subject.size - conf.aligned_below, 8), subject.size + conf.aligned_above
    return subject.size, (
        f"at no size from {low} to {high} px is the architecture's grid symmetric under '{group.name}': "
        f"the best is {size} px, where the twin is off by {error:.2g}"
    )


def _logit_gap(scene: Scene, still: Objective, moved: Objective, conf: GroupLandscape) -> dict[str, Measure]:
    """[ sum_x |f(gx) - f(x)|^2 / sum_x |f(x) - mean f|^2 ]^(1/2)."""
    with torch.no_grad():
        y, moved_y = (torch.cat([o.logits(x) for x, _ in o.batches]).double().cpu() for o in (still, moved))
    gap = (moved_y - y).square().sum(1).numpy()
    square, logits = y.square().sum(1).numpy(), y.numpy()

    def ratio(w: Array) -> Array:
        w = w / w.sum(1, keepdims=True)
        value: Array = ((w @ gap) / (w @ square - ((w @ logits) ** 2).sum(1))) ** 0.5
        return value

    value = bootstrap(ratio, len(gap), conf.resamples, scene.clusters)
    return {"logit_gap": Measure(*value, n=len(gap), null=math.sqrt(2))}


def _certify(found: Finding, scene: Scene, objective: Objective, acting: Actions, at: Tensor) -> None:
    """|Q theta - theta|, |(I - Q)g|, |HQv - QHv|, each by what it is a part of, beside random P."""
    theta, each = objective.theta, at.mean(0)
    mean = (torch.from_numpy(scene.weights / scene.weights.sum()).to(each)[:, None] * each).sum(0)

    def residuals(q: Reordering) -> dict[str, float]:
        both = {"weights": theta.double(), "gradient": mean.double()}
        return {name: float((q(v) - v).norm() / v.norm()) for name, v in both.items()}

    hessian = Hessian(scene.orbit())
    generator = torch.Generator().manual_seed(0)
    own: list[float] = []
    chance: list[float] = []
    for q in acting.random:
        v = torch.randint(2, (objective.size,), generator=generator).mul(2).sub(1).to(theta)
        hv = hessian @ v
        for one, into in ((acting.matched, own), (q, chance)):
            into.append(float((hessian @ one(v) - one(hv)).double().norm() / hv.double().norm()))
    found.hvps += hessian.products
    draws = [residuals(q) | {"commutator": c} for q, c in zip(acting.random, chance, strict=True)]
    null = {key: float(np.mean([draw[key] for draw in draws])) for key in draws[0]}
    middle, lo, hi = mean_interval(np.array(own))
    found.metrics |= {
        "weight_residual": Measure(residuals(acting.matched)["weights"], null=null["weights"]),
        "gradient_residual": norm_ratio(acting.matched(each) - each, each, scene.weights, null["gradient"]),
        "commutator": Measure(middle, lo, hi, len(own), null=null["commutator"]),
    }
    rows = {"matched": residuals(acting.matched) | {"commutator": middle}, "bare": residuals(acting.bare)}
    rows |= {f"random {i}": draw for i, draw in enumerate(draws)}
    found.curves["residuals"] = [{"P": name} | row for name, row in rows.items()]


def _transverse(
    found: Finding,
    scene: Scene,
    objective: Objective,
    acting: Actions,
    gradients: Tensor,
    unit: float,
    conf: GroupLandscape,
) -> None:
    """kappa_- = theta_-.g / |theta_-|^2 and L(theta) - L(theta_+), of Q and of T_g alone."""
    theta, orbit = objective.theta.double(), scene.orbit()
    here = scene.losses(orbit)
    for q, suffix in ((acting.matched, ""), (acting.bare, "_bare")):
        plus = q.fixed(theta)
        minus = theta - plus
        if float(minus.norm()) <= STILL * float(theta.norm()):
            names = [f"transverse_ratio{suffix}", f"symmetry_price{suffix}"] + ["transverse_curvature"] * (not suffix)
            found.metrics |= {name: Measure(None, reason="the weights are symmetric already") for name in names}
            continue
        slopes = (gradients.double() @ minus / minus.square().sum()).cpu().numpy()
        kappa, lo, hi = _mean(slopes, scene.weights, conf.resamples)
        if not suffix:
            found.metrics["transverse_curvature"] = Measure(kappa, lo, hi, len(slopes))
        lo, hi = sorted((lo / unit, hi / unit))
        found.metrics[f"transverse_ratio{suffix}"] = Measure(kappa / unit, lo, hi, len(slopes))
        gain = here - scene.losses(orbit, plus.to(objective.theta))
        price = _mean(gain, np.ones(len(gain)), conf.resamples, scene.clusters)
        found.metrics[f"symmetry_price{suffix}"] = Measure(*price, n=len(gain))
    found.curves["action"][0]["order"] = acting.matched.order


def _mean(
    values: Array, weights: Array, count: int, clusters: NDArray[np.int64] | None = None
) -> tuple[float, float, float]:
    """The weighted mean and its interval."""
    return bootstrap(lambda w: (w * weights) @ values / (w @ weights), len(values), count, clusters)


def _paths(found: Finding, scene: Scene, network: nn.Module, acting: Actions, conf: GroupLandscape) -> None:
    """The barrier between theta and Q theta, T_g theta, and Q theta with random P, of the network as it was trained."""
    orbit, steps = scene.orbit(network), np.linspace(0, 1, conf.points)
    start = orbit.module
    ends = path_losses(start, start, orbit.batches, steps[:1])  # of both: over orbits, Q changes no loss
    path: dict[str, Array] = {}
    for name, q in (("matched", acting.matched), ("bare", acting.bare), ("random", acting.random[0])):
        if name == "bare" and torch.equal(q.index, acting.matched.index):
            path[name] = path["matched"]
        else:
            inside = path_losses(start, orbit.network(q(orbit.theta)), orbit.batches, steps[1:-1])
            path[name] = scene.orbit_means(np.concatenate([ends, inside, ends]))

    def height(losses: Array) -> Statistic:
        return lambda w: barriers(w, losses, steps)

    for name, metric in (("matched", "symmetry_barrier"), ("bare", "symmetry_barrier_bare")):
        n = path[name].shape[1]
        value = bootstrap(height(path[name]), n, conf.resamples, scene.clusters)
        null = at_ones(height(path["random"]), n) if name == "matched" else None
        found.metrics[metric] = Measure(*value, n=n, null=null)
    found.curves["path"] = [
        {"t": t} | {name: float(losses[i].mean()) for name, losses in path.items()}
        for i, t in enumerate(steps.tolist())
    ]
