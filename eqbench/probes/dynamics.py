"""What was recorded while a network trained: identities of its steps, charges, sharpness and the gradient in it.

Curves: `steps`, an entry a logged step: update, loss, lr, threshold, lambda_max, residual, alignment, curvature,
gradient, length, weights, as in `dynamics.recorder`;
`families`, an entry a family (and the control): its instances, and identity, charge, change, decay, square, remainder,
residual, imbalance and decay_imbalance over the steps, as in `dynamics.conservation`.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from eqbench.groups import Group
from eqbench.metrics.symmetries import BUT_FOR_EPS, CONTROL
from eqbench.probes.base import Finding, Subject
from eqbench.results import Measure
from eqbench.schema import Dynamics
from eqbench.stats import Array, bootstrap

RESAMPLES = 2000
FEW = 8  # logged steps below which there is no interval over them
ADAPTIVE = "its optimiser is adaptive"
SLOW = "no sharpness was logged where the learning rate is at least half of the largest"


def run(subject: Subject, group: Group | None, placebo: Group | None, conf: Dynamics) -> Finding:
    """Sum up the record of the training: at least its first step.

    Raises:
        Unsupported: there is none; says why.
    """
    log = subject.training()
    steps, families = log["steps"], log["families"]
    count = len(steps["update"])
    exact = {name: one for name, one in families.items() if name != CONTROL}
    clean = {name: one for name, one in exact.items() if name not in BUT_FOR_EPS}
    control = families.get(CONTROL)
    null = _rms(control["identity"]) if control else None
    metrics = {
        "step_identity": _worst(clean, "identity", count, log["unit"], null),
        "charge_residual": _worst(clean, "residual", count, *_lengths(log))
        if log["momentum"] == 0
        else Measure(None, reason=ADAPTIVE if log["momentum"] is None else "its optimiser has momentum"),
        "charge_breaking": _breaking(exact, count),
        "decay_imbalance": _decay_imbalance(exact),
    }
    metrics |= _edge(log)
    curve = [dict(zip(steps, values, strict=True)) for values in zip(*steps.values(), strict=True)]
    entries = [{"family": name, "instances": log["instances"].get(name, 0), **one} for name, one in families.items()]
    return Finding(metrics, {"steps": curve, "families": entries})


def _worst(
    families: dict[str, Any],
    key: str,
    count: int,
    floor: float | None,
    null: float | None = None,
    lengths: Sequence[float | None] | None = None,
) -> Measure:
    """The largest root mean square over steps of any family, each step counting by the square of its length."""
    found = [_rms(one[key], lengths) for one in families.values() if key in one]
    known = [value for value in found if value is not None]
    reason = None if known else "no step changed the weights" if found else "no family was found"
    return Measure(max(known, default=None), n=count, floor=floor, null=null, reason=reason)


def _rms(values: Sequence[float | None], lengths: Sequence[float | None] | None = None) -> float | None:
    """The root mean square of those that are known, weighted by the squares of the lengths."""
    if lengths is None:
        x = np.array([value for value in values if value is not None])
        return float(np.sqrt(np.mean(np.square(x)))) if len(x) else None
    pairs = [(v, w) for v, w in zip(values, lengths, strict=True) if v is not None and w]
    x, w = np.array(pairs).reshape(-1, 2).T
    return float(np.sqrt(np.average(np.square(x), weights=np.square(w)))) if pairs else None


def _lengths(log: dict[str, Any]) -> tuple[float | None, None, Sequence[float | None]]:
    """Of the charges' residual: its floor, no null, and the lengths of the steps.

    Weights are rounded by eps |theta| however short the step is, and the step itself by its own unit.
    """
    lengths, weights = log["steps"]["length"], log["steps"]["weights"]
    size, step = _rms(weights), _rms(lengths)
    return log["unit"] + log["eps"] * size / step if size and step else None, None, lengths


def _breaking(families: dict[str, Any], count: int) -> Measure:
    charged = [one for one in families.values() if "remainder" in one]
    if not charged:
        return Measure(None, reason="no family has charges")
    terms = ("remainder", "decay", "square")
    finite = [i for i in range(count) if all(one[key][i] is not None for one in charged for key in terms)]
    if not finite:
        return Measure(None, reason="no change of a charge was finite")
    broken, decay, square = (np.abs([[one[key][i] for i in finite] for one in charged]).T for key in terms)
    whole = broken + decay + square
    moving = whole.sum(0) > 0

    def share(w: Array) -> Array:
        return np.mean((w @ broken[:, moving]) / (w @ whole[:, moving]), axis=-1)

    return over_steps(share, len(finite))


def over_steps(statistic: Any, count: int, null: float | None = None) -> Measure:
    """A statistic of logged steps with its interval over blocks of consecutive ones, each about the root of their number.

    Args:
        statistic: maps weights (B, count) on the steps to values (B,).
    """
    if count < FEW:
        return Measure(float(statistic(np.ones((1, count)))[0]), n=count, null=null)
    clusters = np.arange(count) // round(math.sqrt(count))
    return Measure(*bootstrap(statistic, count, RESAMPLES, clusters), n=count, null=null)


def _mean(values: Sequence[float], null: float | None = None) -> Measure:
    x = np.array(values)
    return over_steps(lambda w: w @ x / w.sum(-1), len(x), null)


def _decay_imbalance(families: dict[str, Any]) -> Measure:
    curves = [one["decay_imbalance"] for one in families.values() if "decay_imbalance" in one]
    known = [curve for curve in curves if None not in curve]
    if not known:
        return Measure(None, reason="there is no weight decay" if curves else "no family has charges of both sides")
    first, last = (sum(curve[i] for curve in known) / len(known) for i in (0, -1))
    return Measure(last, null=first)


def _edge(log: dict[str, Any]) -> dict[str, Measure]:
    steps = log["steps"]
    known = [i for i, values in enumerate(steps["lambda_max"]) if values is not None]
    if not known:
        reason = log["reason"] or "no sharpness was logged"
        return {
            name: Measure(None, reason=reason)
            for name in ("training_sharpness", "edge_ratio", "top_alignment", "training_curvature")
        }
    top = {i: steps["lambda_max"][i] for i in known}
    end, error = top[known[-1]], steps["residual"][known[-1]]
    found = {"training_sharpness": Measure(end, end - error, end + error, log["images"], null=top[known[0]])}
    fast = [i for i in known if steps["threshold"][i] and steps["lr"][i] >= max(steps["lr"]) / 2]
    found["edge_ratio"] = (
        _mean([top[i] / steps["threshold"][i] for i in fast], null=1.0)
        if fast
        else Measure(
            None, reason=SLOW if log["momentum"] is not None else f"{ADAPTIVE}: 2 / lr is not its edge of stability"
        )
    )
    aimed = [i for i in known if steps["alignment"][i] is not None]
    if not aimed:
        nowhere = "the gradient vanishes"
        return found | {name: Measure(None, reason=nowhere) for name in ("top_alignment", "training_curvature")}
    found["top_alignment"] = _mean([steps["alignment"][i] for i in aimed], null=log["parameters"] ** -0.5)
    curved = [steps["curvature"][i] / top[i] for i in aimed if top[i] > 0]
    flat = Measure(None, reason="the largest eigenvalue is nowhere positive")
    return found | {"training_curvature": _mean(curved) if curved else flat}
