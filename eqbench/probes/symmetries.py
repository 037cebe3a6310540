"""The certificate: which symmetries the weights have, and whether gradient and Hessian obey what those force on them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eqbench.curvature.guard import guard
from eqbench.curvature.hessian import Hessian
from eqbench.curvature.objective import Objective
from eqbench.errors import Failed, Unsupported
from eqbench.groups import Group
from eqbench.metrics.symmetries import BUT_FOR_EPS, CONTROL, FAMILIES
from eqbench.probes.base import Finding, Subject
from eqbench.probes.landscape.objectives import objective_of
from eqbench.results import Measure
from eqbench.schema import Symmetries
from eqbench.symmetries import dataflow, permutation, shifts
from eqbench.symmetries.attention import Pair
from eqbench.symmetries.balancing import imbalance
from eqbench.symmetries.certificate import Along, Point, worst
from eqbench.symmetries.families import confirm_but_for_eps, control, propose
from eqbench.symmetries.rescalings import Rescaling
from eqbench.symmetries.temperature import head_residual
from eqbench.symmetries.transformations import Symmetry, beside, change

GATE = 1e-10  # of relative residuals in float64
GATE_SINGLE = 1e-5  # in float32: reported alone; what the control must exceed, also in float64
CONTROLS = 16  # instances of the control, at most, spread over the depth
EPS = float(np.finfo(np.float64).eps)


@dataclass
class Row:
    """What was found of one family.

    Attributes:
        refuted: with the relative change of the logits. r1, r2: residuals in float64, r2_single in float32.
        curvature, random: along the symmetric directions, and along random ones on the same support (float32).
        pull: |J_K'g| / |K|, the size of the product that the symmetry forces.
    """

    family: str
    confirmed: list[Symmetry]
    refuted: list[tuple[Symmetry, float]]
    r1: float | None = None
    r2: float | None = None
    r2_single: float | None = None
    curvature: float | None = None
    random: float | None = None
    pull: float = 0.0
    imbalance: float | None = None

    @property
    def null(self) -> int:
        return sum(one.null for one in self.confirmed)


def run(subject: Subject, group: Group | None, placebo: Group | None, conf: Symmetries) -> Finding:
    """Certify one network's symmetries, which have no group.

    Raises:
        Unsupported: an operation without a second derivative.
        Failed: a residual above its gate, a control below it, or the guard found the derivatives wrong.
    """
    objective = _first(objective_of(subject, conf.micro_batch, conf.batch_statistics), conf.curvature_images)
    guard(objective, conf.exact_images)
    few = objective.first(conf.exact_images)
    flow = dataflow.trace(few.module, few.batches[0][0])
    trained = set(few.names)
    proposed = [one for one in propose(few.module, flow) if trained.issuperset(one.names)]
    near = beside(few)
    rows = _confirm(near, proposed)
    candidates = [one for one in control(flow, proposed) if trained.issuperset(one.names)]
    candidates = candidates[:: math.ceil(len(candidates) / CONTROLS) or 1]
    wrong = [one for one in candidates if change(near, [one]) > GATE_SINGLE]  # that the logits really feel
    refused = _refuse(near, wrong)
    del near

    exact, single = Point(few.double()), Point(objective)
    tiny = (
        Point(exact.objective.without_eps())
        if any(row.family in BUT_FOR_EPS and row.confirmed for row in rows)
        else exact
    )
    strongest: Along | None = None
    for row in rows:
        if row.confirmed:
            _certify(row, tiny if row.family in BUT_FOR_EPS else exact)
            along = _measure(row, single)
            if row.pull > 0 and row.pull == max(one.pull for one in rows):
                strongest = along
            row.imbalance = _imbalance(objective, row.confirmed)
    bounds = single.bounds(strongest) if strongest is not None else None
    metrics = _summary(rows, objective, refused) | _bounds(bounds, objective)
    metrics["head_residual"] = _head(exact, flow)
    metrics["permutation_residual"] = _permuted(exact)
    products = sum(point.hessian.products for point in {exact, single, tiny}) + (refused is not None)
    return Finding(metrics, {"families": _curve(rows, refused, len(wrong))}, hvps=products)


def _first(objective: Objective, images: int) -> Objective:
    """The same loss over the first images."""
    batches, left = [], images
    for x, y in objective.batches:
        batches += [(x[:left], y[:left])] if left > 1 else []
        left -= len(x)
    return Objective(objective.module, batches, objective.loss)


def _confirm(near: Objective, proposed: Sequence[Symmetry]) -> list[Row]:
    """What finite steps tell, family by family."""
    verdict, rows = confirm_but_for_eps(near, proposed), []
    for family in FAMILIES:
        confirmed = [one for one in verdict.confirmed if one.family == family]
        refuted = [(one, moved) for one, moved in verdict.refuted if one.family == family]
        rows += [Row(family, confirmed, refuted)] if confirmed or refuted else []
    return rows


def _refuse(near: Objective, wrong: Sequence[Symmetry]) -> Along | None:
    """The residuals of the control, beside the weights, where no branch is switched off.

    Raises:
        Failed: they are as small as a symmetry's, so that the certificate would mean nothing.
    """
    if not wrong:
        return None
    found = Point(near).along(wrong)
    if not found.r2 > GATE_SINGLE:
        what = f"the control at '{wrong[0].name}' is no symmetry, but its residual is"
        raise Failed(f"{what} {found.r2:.2g} <= {GATE_SINGLE:g} in float64")
    return found


def _certify(row: Row, point: Point) -> None:
    """First- and second-order residuals in float64.

    Raises:
        Failed: the second exceeds its gate; names the worst instance.
    """
    along = point.along(row.confirmed)
    row.r1, row.r2 = along.r1, along.r2
    if not along.r2 <= GATE:
        del along
        instance, found = worst(point, row.confirmed)
        raise Failed(
            f"symmetry {row.family} ({FAMILIES[row.family]}) leaves the logits alone, but the Hessian does not obey it: "
            f"residual {row.r2:.2g} > {GATE:g} in float64, worst at '{instance.name}' ({found.r2:.2g})"
        )


def _measure(row: Row, point: Point) -> Along:
    """The residual in the network's own precision, and curvature along and across."""
    along = point.along(row.confirmed)
    row.r2_single, row.curvature = along.r2, along.curvature
    row.pull = float(along.forced.norm() / along.k.norm())
    u = point.alike(along.k)
    row.random = float(u.double() @ (point.hessian @ u).double()) / float(u.double().square().sum())
    return along


def _imbalance(objective: Objective, symmetries: Sequence[Symmetry]) -> float | None:
    theta = {name: p.detach().double().cpu() for name, p in objective.module.named_parameters()}
    found = [imbalance(theta, one.origin) for one in symmetries if isinstance(one.origin, Rescaling | Pair)]
    return float(torch.cat(found).mean()) if found else None


def _head(exact: Point, flow: dataflow.Dataflow) -> Measure:
    """S14, for any network that ends in a linear layer.

    Raises:
        Failed: the residual exceeds its gate.
    """
    heads = shifts.heads(flow)
    if not heads:
        return Measure(None, reason="the logits are not those of linear layers alone")
    if not {name for node in heads for name in (node.weight, node.bias) if name} <= set(exact.objective.names):
        return Measure(None, reason=f"the head '{heads[0].name}' requires no gradient")
    residual = head_residual(exact.hessian, exact.gradient, heads)
    if not residual <= GATE:
        raise Failed(f"head temperature at '{heads[0].name}': residual {residual:.2g} > {GATE:g} in float64")
    return Measure(residual, n=exact.objective.images, floor=EPS)


def _permuted(exact: Point) -> Measure:
    """D1: |H(P theta) P v - P H v| / |Hv| with one random order of every space of hidden channels, and random v.

    Raises:
        Failed: the residual exceeds its gate.
    """
    objective = exact.objective
    try:
        spaces = permutation.find_spaces(objective.module.train().eval(), objective.batches[0][0])
    except Unsupported as reason:
        return Measure(None, reason=str(reason))
    order = spaces.random(0)
    there = Objective(permutation.apply(objective.module.train().eval(), order), objective.batches, objective.loss)

    def permuted(v: Tensor) -> Tensor:
        moved = permutation.permute(objective.named(v), order)
        return objective.flat(moved[name] for name in objective.names)

    v = torch.randn(objective.size, generator=torch.Generator().manual_seed(2)).to(objective.theta)
    hv = exact.hessian @ v
    residual = float((Hessian(there) @ permuted(v) - permuted(hv)).norm() / hv.norm())
    if not residual <= GATE:
        raise Failed(
            f"permuting the channels of {len(spaces.spaces)} spaces: residual {residual:.2g} > {GATE:g} in float64"
        )
    return Measure(residual, n=objective.images, floor=EPS)


def _summary(rows: Sequence[Row], objective: Objective, refused: Along | None) -> dict[str, Measure]:
    found, n = [row for row in rows if row.confirmed], objective.images
    none = None if found else "no family was found"

    def largest(values: Sequence[float | None], eps: float) -> Measure:
        known = [value for value in values if value is not None]
        null = refused.r2 if refused is not None else None
        return Measure(max(known, default=None), n=n, floor=eps, null=null, reason=None if known else none)

    null = sum(row.null for row in found)
    along = sum(abs(row.curvature or 0.0) for row in found)
    across = sum(abs(row.random or 0.0) for row in found)
    charges = [row.imbalance for row in found if row.imbalance is not None]
    return {
        "symmetry_families": Measure(len(found)),
        "symmetries_refuted": Measure(sum(len(row.refuted) for row in rows)),
        "symmetry_residual": largest([row.r2 for row in found], EPS),
        "symmetry_residual_single": largest(
            [row.r2_single for row in found if row.family not in BUT_FOR_EPS], float(torch.finfo(objective.dtype).eps)
        ),
        "null_dimension": Measure(null),
        "null_share": Measure(null / objective.size),
        "symmetric_curvature": Measure(
            along / across if across else None, n=n, null=1.0, reason=None if across else none
        ),
        "balance_residual": Measure(
            sum(charges) / len(charges) if charges else None, reason=None if charges else "no family has charges"
        ),
    }


def _bounds(bounds: tuple[float, float] | None, objective: Objective) -> dict[str, Measure]:
    names = ("certified_lambda_min", "certified_lambda_max")
    if bounds is None:
        return {name: Measure(None, reason="no symmetry forces a product of the Hessian") for name in names}
    return {name: Measure(value, n=objective.images) for name, value in zip(names, bounds, strict=True)}


def _curve(rows: Sequence[Row], refused: Along | None, controls: int) -> list[dict[str, Any]]:
    """One entry a family, and one for the control."""
    entries: list[dict[str, Any]] = []
    for row in rows:
        facts = {
            key: getattr(row, key) for key in ("r1", "r2", "r2_single", "curvature", "random", "pull", "imbalance")
        }
        entry = {"family": row.family, "confirmed": len(row.confirmed), "refuted": len(row.refuted), "null": row.null}
        entry |= facts
        if row.refuted:
            (one, moved), *_ = sorted(row.refuted, key=lambda pair: -pair[1])
            entry |= {"refuted_at": one.name, "change": moved}
        entries.append(entry)
    if refused is not None:
        control = {"family": CONTROL, "confirmed": 0, "refuted": controls, "null": 0}
        entries.append(control | {"r1": refused.r1, "r2": refused.r2})
    return entries
