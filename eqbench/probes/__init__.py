"""Measurement procedures: a probe a file, its machinery in a folder; `measure` runs one, `probe` runs one on a module."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from eqbench import groups, schema
from eqbench.combined import Combined
from eqbench.errors import Failed, Unsupported, UserError, one_line, out_of_memory, unknown
from eqbench.groups import Group
from eqbench.probes import (
    ablation,
    circuits,
    consistency,
    dynamics,
    group_landscape,
    lie,
    orbit,
    robustness,
    sharpness,
    slices,
    spectrum,
    sweep,
    symmetries,
)
from eqbench.probes.base import Finding, Subject, check_logits, ieee
from eqbench.probes.notebook import tensor_subject
from eqbench.results import Result, Status
from eqbench.schema import UNGROUPED

__all__ = ["measure", "probe"]


RUN: dict[type[schema.Probe], Callable[[Subject, Any, Any, Any], Finding]] = {
    schema.Orbit: orbit.run,
    schema.Circuits: circuits.run,
    schema.Ablation: ablation.run,
    schema.Lie: lie.run,
    schema.Sweep: sweep.run,
    schema.Consistency: consistency.run,
    schema.Spectrum: spectrum.run,
    schema.Symmetries: symmetries.run,
    schema.GroupLandscape: group_landscape.run,
    schema.Sharpness: sharpness.run,
    schema.Slices: slices.run,
    schema.Robustness: robustness.run,
    schema.Dynamics: dynamics.run,
}


def measure(subject: Subject, group: Group | None, placebo: Group | None, conf: schema.Probe) -> Result:
    """Run one probe; what it foresees going wrong becomes the result's status and reason.

    Args:
        subject: the network and its images. group, placebo: None for probes that have no group, or without a placebo.
        conf: the probe's configuration; its type says which probe.

    Returns:
        A result with metrics, layers, curves and cost; the caller knows which cell it is.
    """
    started, forwards = time.perf_counter(), subject.forwards
    if subject.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    result, found = Result(cell={}), Finding({})
    try:
        with ieee(), torch.enable_grad():
            _check(subject)
            inner = getattr(subject.network, "module", None)
            if conf.single and isinstance(inner, Combined):
                raise Unsupported(inner.reason())
            found = RUN[type(conf)](subject, group, placebo, conf)
    except Unsupported as error:
        result.status, result.reason = Status.skipped, str(error)
    except Failed as error:
        result.status, result.reason = Status.failed, str(error)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        result.status = Status.failed
        result.reason = "out of memory: lower `batch` of the model, or `micro_batch` of the probe if it has one"
    result.metrics, result.layers, result.curves = found.metrics, found.layers, found.curves
    result.cost = {
        "seconds": round(time.perf_counter() - started, 3),
        "forwards": subject.forwards - forwards,
        "jvps": found.jvps,
        "hvps": found.hvps,
        "peak_mb": _peak_mb(subject.device),
        "device": subject.device.type,
        "threads": torch.get_num_threads(),
    }
    return result


@torch.no_grad()
def _check(subject: Subject) -> None:
    """Whether the network takes the images and gives logits; asked once a subject.

    Raises:
        Unsupported: it does not; says what it gives.
    """
    if not subject.checked:
        x = next(iter(subject.batches(subject.size)))[:2].to(subject.device)
        try:
            check_logits(subject.network(x), x)
        except (RuntimeError, TypeError, ValueError) as error:
            if out_of_memory(error):
                raise
            raise Unsupported(f"the network does not take images {tuple(x.shape)}: {one_line(error)}") from None
        subject.checked = True


def _peak_mb(device: torch.device) -> int:
    """Peak memory in MB: the GPU's allocations, or the whole process on a CPU."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated() / 1e6)
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)


def probe(
    name: str,
    module: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    group: str | Group = UNGROUPED,
    *,
    placebo: str | Group | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch: int = 32,
    **options: Any,
) -> Result:
    """Measure any network in memory: no files, no workflow; the module is left as it was.

    Args:
        name: a probe, e.g. "orbit". group: e.g. "hflip", or one of your own; the usual placebo of a name is used unless
            `placebo` is another.
        module: maps (B, 3, H, W) images in [0, 1] to logits (B, classes), or normalised ones if `mean`, `std` are given.
        images: (n, 3, H, H) in [0, 1]. labels: (n,) class indices; None: label-free metrics.
        options: the probe's own, as in conf/probe/<name>.yaml.

    Raises:
        UserError: a name, an option or a shape is wrong.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    >>> result = probe("orbit", net, torch.rand(32, 3, 17, 17), group="hflip", floor_images=4)
    >>> error = result.metrics["lattice_error"]
    >>> error.floor < 1e-4 < error.lo < error.value < error.hi
    True
    """
    if name not in schema.PROBES:
        raise unknown("probe", name, schema.PROBES)
    kind = schema.PROBES[name]
    acting = _group("group", group)
    other = _group("placebo", placebo or groups.PLACEBOS.get(acting.name, UNGROUPED))
    if other.name != UNGROUPED:
        schema.check_placebo(acting, other)
    if kind.kinds and (acting.name == UNGROUPED or acting.kind not in kind.kinds):
        fitting = ", ".join(id for id, one in groups.GROUPS.items() if one.kind in kind.kinds and id != UNGROUPED)
        what = f"probe '{name}' needs a {' or '.join(kind.kinds)} group"
        raise UserError(f"{what}, not '{acting.name}'; there are: {fitting}")
    known = asdict(kind())
    for key in options:
        if key not in known:
            raise unknown(f"option of probe '{name}'", key, known)
    options = {"images": max(8, len(images))} | options
    try:
        conf: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), options))
    except OmegaConfBaseException as error:
        raise UserError(f"probe '{name}': {str(error).splitlines()[0]}") from None
    modes = {layer: layer.training for layer in module.modules()}
    try:
        subject = tensor_subject(module, images, labels, mean=mean, std=std, batch=batch)
        result = measure(subject, acting, other if other.name != UNGROUPED else None, conf)
    finally:
        for layer, training in modes.items():
            layer.training = training
    result.cell = {"group": acting.name, "probe": name}
    result.config = {"probe": {**asdict(conf), "version": kind.version}}
    return result


def _group(key: str, value: Any) -> Group:
    """The group of this name, or this group.

    Raises:
        UserError: it is neither.
    """
    if isinstance(value, str):
        return groups.get(value)
    if not isinstance(value, Group):
        raise UserError(f"{key}: expected the name of a group, or an instance of one, got {value!r:.80}")
    return value
