"""Realistic made-up results for a suite, written the way probes write them: what the board's tests are fed with."""

import hashlib
import math
import random
from collections.abc import Callable
from pathlib import Path

from eqbench import results
from eqbench.cells import names
from eqbench.config import Cell, Plan, load_suite
from eqbench.results import Measure, Result, Status

FAMILIES = {"efficientnet": "EfficientNet", "resnet": "ResNet", "convnext": "ConvNeXt", "vit": "ViT"}
SKILL = {"efficientnet": 0.55, "resnet": 0.8, "convnext": 0.7, "vit": 0.9}  # lattice error after training
EASE = {"hflip": 0.45, "vflip": 1.0, "c4": 1.05, "d4": 1.08}


def _sha(*parts: object) -> str:
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


def _share(value: float, n: int, **beside: float) -> Measure:
    half = 1.96 * math.sqrt(max(value * (1 - value), 0.004) / n)
    return Measure(value, max(value - half, 0.0), min(value + half, 1.0), n, **beside)


def _orbit(cell: Cell, labels: bool, rng: random.Random) -> dict[str, Measure]:
    kind = cell.model.split("_")[0]
    trained, symmetric, n = cell.state != "init", cell.model.endswith("_d4"), 256
    error = (SKILL.get(kind, 0.8) * EASE.get(cell.group, 1.0) * (0.3 if symmetric else 1)) if trained else 1.15
    error *= 1 + rng.uniform(-0.06, 0.06)
    floor = 2e-7 if kind != "vit" else 3e-2
    share = 0.35 * error if trained else 0.01
    placebo = 0.35 * SKILL.get(kind, 0.8) * 1.1 if trained else 0.012
    agree = max(0.05, 1 - 0.6 * error) if trained else 0.3
    beside = {"floor": floor, "null": 1.41}
    found = {
        "lattice_error": Measure(error * 1.1, error * 1.03, error * 1.18, n, floor=0.21, null=1.42),
        "lattice_error_aligned": Measure(error, error * 0.94, error * 1.07, n, **beside),
        "aligned_size": Measure(33.0 if kind != "efficientnet" else 225.0, n=4),
        "placebo_gap": Measure(placebo - share, placebo - share - 0.03, placebo - share + 0.03, n, null=0.0),
        "consistency": _share(agree, n, floor=1.0, null=0.11),
        "kappa": Measure((agree - 0.11) / 0.89, (agree - 0.16) / 0.89, (agree - 0.06) / 0.89, n, 1.0, 0.0),
    }
    if labels:
        accuracy = 0.97 - 0.04 * SKILL.get(kind, 0.8) - (0.02 if symmetric else 0) if trained else 0.1
        found |= {
            "symmetry_share": _share(min(share, 0.9), n, floor=0.0, null=placebo),
            "accuracy": _share(accuracy + rng.uniform(-0.01, 0.01), n, null=0.11),
            "orbit_accuracy": _share(max(0.1, accuracy - 0.4 * error) if trained else 0.1, n, null=0.11),
        }
    else:
        found |= {
            "js_share": _share(min(share, 0.9), n, floor=0.0, null=placebo),
            "js_divergence": Measure(share * 2, share * 1.8, share * 2.2, n, 0.0, placebo * 2),
        }
    return found


def _spectrum(cell: Cell, rng: random.Random) -> tuple[dict[str, Measure], dict[str, list[float]]]:
    top = (rng.uniform(20, 60) if cell.state != "init" else rng.uniform(2, 9)) * (3 if cell.model[0] == "r" else 1)
    values = [top / (1 + 0.7 * i) for i in range(5)]
    low = -0.12 * top if cell.state == "init" else -0.01 * top
    metrics = {
        "loss": Measure(0.08 if cell.state != "init" else 2.31, 0.07, 2.4, 256, null=math.log(10)),
        "lambda_max": Measure(top, top * 0.999, top * 1.001, 1),
        "lambda_min": Measure(low, low * 1.001, low * 0.999, 1),
        "trace": Measure(top * 4, top * 3.5, top * 4.5, 30),
    }
    return metrics, {"eigenvalues": values, "residuals": [top * 1e-4] * 5, "smallest": [low]}


def make(plan: Plan, cell: Cell) -> Result:
    """One finished cell."""
    rng = random.Random(_sha(cell.model, cell.seed, cell.state, cell.group))
    kind = cell.model.split("_")[0]
    labels = plan.data(cell) != "photos"
    metrics, curves = (_orbit(cell, labels, rng), {}) if cell.probe == "orbit" else _spectrum(cell, rng)
    trained = plan.trained(cell.model)
    return Result(
        names(plan, cell),
        metrics=metrics,
        curves=curves,
        config=plan.config(cell),
        cost={"seconds": 3.25, "forwards": 4096, "jvps": 0, "hvps": 80, "peak_mb": 512, "device": "cpu"},
        provenance={
            "family": FAMILIES.get(kind, kind),
            "architecture": plan.option("model", cell.model).timm,
            "parameters": {"efficientnet": 4652008, "vit": 372362}.get(kind, 472074),
            "image_size": 224 if kind == "efficientnet" else 32,
            "timm": plan.option("model", cell.model).timm,
            "source": str(plan.option("model", cell.model).source),
            "origin": "trained here" if trained else {"package": "some-package 0.1.0", "file": "models/weights.pth"},
            "licence": None if trained else "Apache-2.0",
            "augment": ("d4" if cell.model.endswith("_d4") else "none") if trained else None,
            "weights": _sha("weights", cell.model, cell.seed, cell.state),
            "data": _sha("data", plan.data(cell)),
            "eqbench": "0.1.0",
            "git": "0123456789abcdef",
            "dirty": False,
            "python": "3.11.9",
            "torch": "2.15.0",
            "timm_version": "1.0.31",
            "dtype": "float32",
            "started": "2026-01-02T03:04:05Z",
            "slurm_job": None,
        },
        digest=_sha("digest", cell),
    )


def fill(folder: Path, plan: Plan | None = None, change: Callable[[Cell, Result], Result | None] | None = None) -> Plan:
    """Write every cell of the demo plan below `folder`; `change` may alter a result, or drop it by returning None."""
    plan = plan or load_suite("demo")
    for cell in plan.cells:
        result = make(plan, cell)
        kept = change(cell, result) if change else result
        if kept is not None:
            results.write(kept, folder / cell.path)
    return plan


def fail(result: Result, reason: str, status: Status = Status.failed) -> Result:
    """The same cell, gone wrong."""
    result.status, result.reason, result.metrics, result.curves = status, reason, {}, {}
    return result
