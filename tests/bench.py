"""Speed, as ratios within one run: `make bench` writes reports/bench.csv (name, value, unit, target, peer)."""

import csv
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import bench_curvature
import numpy as np
import timm
import torch
from bench_curvature import Row
from torch import nn

from eqbench.config import load_suite
from eqbench.features import Taps
from eqbench.groups import PLACEBOS, get, get_finite
from eqbench.probes import measure
from eqbench.probes.base import forward_orbit
from eqbench.probes.derivatives.directions import Velocities, blurred, controls
from eqbench.probes.derivatives.tally import squares
from eqbench.probes.derivatives.tangents import METHODS, Jacobian
from eqbench.probes.ladders import layers
from eqbench.probes.notebook import tensor_subject
from eqbench.schema import PROBES, Orbit
from eqbench.stats import Array

MODELS = ("resnet18", "vit_tiny_patch16_224", "convnext_atto")
SIZE, BATCH = 224, 8


def in_turns(works: Sequence[Callable[[], object]], rounds: int = 5) -> Array:
    """Seconds of each work in each round, (rounds, works), after one that is not counted.

    In turns, so that what else runs slows all of them down alike.
    """
    found = np.empty((1 + rounds, len(works)))
    for row in found:
        for i, work in enumerate(works):
            start = time.perf_counter()
            work()
            row[i] = time.perf_counter() - start
    return found[1:]


def lie(name: str, module: nn.Module) -> Iterator[Row]:
    """Lie derivatives along the six generators of the affine group, with all layers, against a bare forward pass."""
    x = torch.rand(BATCH, 3, SIZE, SIZE)
    velocities, taps = Velocities(get("affine"), SIZE), Taps(module, x)
    jacobian, generators = Jacobian(module, taps, next(iter(METHODS))), len(velocities.generators)

    def bare() -> None:
        with torch.no_grad():
            module(x)

    def derivatives(count: int) -> None:
        for part in x.split(Jacobian.images(x, generators + count)):
            smooth = blurred(part, 1.0)
            v = velocities.images(smooth)
            maps, tangents = jacobian(smooth, torch.cat([v, controls(v, 0, count)]) if count else v)
            for layer in taps.layers:
                squares(velocities, layer, maps, tangents)

    works = {"six generators": lambda: derivatives(0), "six generators and two controls": lambda: derivatives(2)}
    forward, *times = in_turns([bare, *works.values()]).T
    for what, taken, target in zip(works, times, ("2.5", ""), strict=True):
        yield (
            f"{what}, all layers, {name}",
            float(np.median(taken / forward)) / generators,
            "forwards a generator",
            target,
            "",
        )


def ladder(name: str, module: nn.Module) -> Iterator[Row]:
    """Every layer by the ladder of representations, over d4, against the bare forwards that it makes."""
    group = get_finite("d4")
    elements = [group.elements()[0], *group.generators()]
    subject = tensor_subject(module, torch.rand(256, 3, SIZE, SIZE), batch=BATCH)

    def forwards() -> None:
        forward_orbit(module, subject.halves(SIZE), subject.device, group, elements)

    bare, whole = in_turns([forwards, lambda: layers.measure(subject, group, SIZE, Orbit())], 3).T
    yield f"layers over d4, {name}", float(np.median(whole / bare)), "bare forwards", "1.3", ""


SUITE = (("orbit", "d4"), ("lie", "affine"), ("circuits", "d4"), ("consistency", "d4"), ("consistency", "translation"))


def suite(name: str, module: nn.Module) -> Iterator[Row]:
    """Forwards an image of the default equivariance suite; a derivative along one direction counts as one forward.

    As in a job of the workflow, the probes share one subject, and so each logit.
    """
    images = torch.rand(32, 3, SIZE, SIZE)
    subject = tensor_subject(module, images, batch=BATCH)

    def cost(probe: str, name: str) -> dict[str, Any]:
        placebo = get(PLACEBOS[name]) if name in PLACEBOS else None
        return measure(subject, get(name), placebo, PROBES[probe](images=len(images))).cost

    costs = [cost(probe, group) for probe, group in SUITE]
    total = sum(cost["forwards"] + cost["jvps"] for cost in costs) / len(images)
    yield f"default equivariance suite, {name}", total, "forwards an image", "60", ""


def planning() -> Iterator[Row]:
    """Composing a suite of 11,016 cells."""
    start = time.perf_counter()
    plan = load_suite("demo", ["suite.demo.blocks.digits.seeds=275"])
    for cells in plan.parts.values():
        plan.expectation(cells)
    yield f"plan of {len(plan.cells)} cells", time.perf_counter() - start, "s", "15", ""


def rows() -> Iterator[Row]:
    """Every benchmark, one after the other."""
    yield from planning()
    yield from bench_curvature.rows()
    for name in MODELS:
        module = timm.create_model(name).eval()
        yield from ladder(name, module)
        yield from lie(name, module)
        yield from suite(name, module)


def main() -> None:
    """Run every benchmark and write the table, row by row."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    with open("reports/bench.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "value", "unit", "target", "peer"])
        for name, value, unit, target, peer in rows():
            writer.writerow([name, f"{value:.4g}", unit, target, peer])
            file.flush()
            print(f"{name}: {value:.4g} {unit}" + (f" (target {target})" if target else ""), flush=True)


if __name__ == "__main__":
    main()
