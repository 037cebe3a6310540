"""Measurement procedures: a probe a file; `measure` runs one, `probe` runs one on a module in a notebook."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from eqbench import groups, schema
from eqbench.errors import Failed, Unsupported, UserError, unknown
from eqbench.probes import orbit, spectrum
from eqbench.probes.base import Subject, ieee, tensor_subject
from eqbench.results import Result, Status
from eqbench.schema import UNGROUPED

__all__ = ["measure", "probe"]


def measure(subject: Subject, action: str, placebo: str | None, conf: schema.Orbit | schema.Spectrum) -> Result:
    """Run one probe; what it foresees going wrong becomes the result's status and reason.

    Args:
        subject: the network and its images. action, placebo: names in `groups.GROUPS`; `action` is ignored by probes
            that have no group.
        conf: the probe's configuration; its type says which probe.

    Returns:
        A result with metrics, curves and cost; the caller knows which cell it is.
    """
    started, forwards = time.perf_counter(), subject.forwards
    if subject.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    result = Result(cell={})
    products = 0
    try:
        with ieee(), torch.enable_grad():
            if isinstance(conf, schema.Orbit):
                other = groups.get(placebo) if placebo and placebo != UNGROUPED else None
                result.metrics, result.curves = orbit.run(subject, groups.get(action), other, conf)
            else:
                result.metrics, result.curves, products = spectrum.run(subject, conf)
    except Unsupported as error:
        result.status, result.reason = Status.skipped, str(error)
    except Failed as error:
        result.status, result.reason = Status.failed, str(error)
    except torch.OutOfMemoryError:
        result.status = Status.failed
        result.reason = "out of GPU memory: lower `batch` of the model, or `micro_batch` of the spectrum probe"
    result.cost = {
        "seconds": round(time.perf_counter() - started, 3),
        "forwards": subject.forwards - forwards,
        "jvps": 0,
        "hvps": products,
        "peak_mb": _peak_mb(subject.device),
        "device": subject.device.type,
        "threads": torch.get_num_threads(),
    }
    return result


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
    group: str = UNGROUPED,
    *,
    placebo: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch: int = 32,
    **options: Any,
) -> Result:
    """Measure any network in memory: no files, no workflow; the module is left as it was.

    Args:
        name: a probe, e.g. "orbit". group: e.g. "hflip"; its usual placebo is used unless `placebo` names another.
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
    if kind.grouped and group == UNGROUPED:
        raise UserError(f"probe '{name}' needs a group, e.g. group='hflip'; there are: {', '.join(groups.GROUPS)}")
    groups.get(group)
    known = asdict(kind())
    for key in options:
        if key not in known:
            raise unknown(f"option of probe '{name}'", key, known)
    try:
        conf: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), options))
    except OmegaConfBaseException as error:
        raise UserError(f"probe '{name}': {str(error).splitlines()[0]}") from None
    modes = {layer: layer.training for layer in module.modules()}
    try:
        subject = tensor_subject(module, images, labels, mean=mean, std=std, batch=batch)
        result = measure(subject, group, placebo or groups.PLACEBOS.get(group), conf)
    finally:
        for layer, training in modes.items():
            layer.training = training
    result.cell = {"group": group, "probe": name}
    result.config = {"probe": {**asdict(conf), "version": kind.version}}
    return result
