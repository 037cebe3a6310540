"""Realistic made-up results for a suite, written the way probes write them: what the board's tests are fed with.

What is known of a metric by name has a shape to look at; every other metric of eqbench.metrics gets plain numbers, so that
a new one is on the boards of these tests without a change here.
"""

import base64
import hashlib
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from eqbench import config, ensembles, results, schema
from eqbench.cells import names
from eqbench.config import Cell, Plan
from eqbench.groups import GROUPS
from eqbench.metrics import METRICS, Metric
from eqbench.results import Layer, Measure, Result, Status
from eqbench.stats import STORED

FAMILIES = {"efficientnet": "EfficientNet", "resnet": "ResNet", "convnext": "ConvNeXt", "vit": "ViT"}
SKILL = {"efficientnet": 0.55, "resnet": 0.8, "convnext": 0.7, "vit": 0.9}  # lattice error after training
EASE = {"hflip": 0.45, "vflip": 1.0, "c4": 1.05, "d4": 1.08, "translation": 0.3, "rotation": 0.8, "hue": 0.5}
RUNGS = {
    "layer_error_trivial": 1.0,
    "layer_error_spatial": 0.8,
    "layer_error_permuted": 0.55,
    "layer_error_fitted": 0.4,
}
LABELLED, UNLABELLED = {"symmetry_share", "accuracy", "orbit_accuracy"}, {"js_share", "js_divergence"}
COMBINED = {"emergence_index", "ensemble_same_prediction"}  # no cell's, but a board's

FINITE = ["hflip", "vflip", "c4", "d4"]
TREATED = ["convnext_digits", "convnext_digits_d4"]  # measured over training, too, on a deep board
RECIPE = {
    "data": "digits",
    "epochs": 10,
    "opt": "adamw",
    "lr": 4e-3,
    "warmup_epochs": 1,
    "augment": "none",
    "penalty": None,
}
DIGITS = ["resnet_digits", "convnext_digits", "convnext_digits_d4", "vit_digits"]


def suite(name: str = "demo", deep: bool = False) -> Plan:
    """A plan that does not change with conf/suite: five models, four finite groups; `deep`: every probe, Lie groups, and
    two models over training, too.
    """
    groups = FINITE + (["translation", "rotation", "hue"] if deep else [])
    first, others = (
        (["orbit"], ["orbit", "spectrum"])
        if not deep
        else ([p for p, kind in schema.PROBES.items() if kind.kinds], list(schema.PROBES))
    )
    plan = Plan(name, schema.Pack.run, {}, ())
    for block, images in (
        (schema.Block(["efficientnet_lite0"], "photos", groups, first, seeds=3, images=64), 64),
        (schema.Block(DIGITS, "digits", groups, others, seeds=2), None),
    ):
        plan.cells.update((cell, (block.data, images)) for cell in config._block_cells(plan, block, "tests/board.py"))
    return over_training(plan, TREATED, ["hflip", "d4"], [1, 4], 2) if deep else plan


def over_training(plan: Plan, models: list[str], groups: list[str], epochs: list[int], seeds: int) -> Plan:
    """The plan with the cells of these epochs of these models, by the probes that curves over training are made of."""
    probes = ["orbit", "circuits", "group_landscape", "spectrum", "symmetries"]
    for model, seed, epoch, probe in itertools.product(models, range(seeds), epochs, probes):
        for group in groups if schema.PROBES[probe].kinds else [schema.UNGROUPED]:
            plan.cells[Cell(plan.name, model, f"s{seed}", f"epoch-{epoch:03d}", group, probe)] = ("digits", None)
    return plan


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
    curves = {"eigenvalues": values, "residuals": [top * 1e-4] * 5, "smallest": [low]}
    nodes = [low, 0.3 * low, 0.0, 0.01 * top, *values[::-1]]
    return metrics, curves | {"density_nodes": nodes, "density_weights": [1e-6, 0.2, 0.7, 0.1 - 6e-6, *[1e-6] * 5]}


def _plain(metric: Metric, trained: bool, rng: random.Random) -> Measure:
    """A number for a metric that nothing more is known of."""
    better = metric.higher_is_better if metric.higher_is_better is not None else True
    value = (0.7 if trained == better else 0.3) * rng.uniform(0.9, 1.1)
    beside = {"floor": 1e-3 if metric.floor else None, "null": 1.0 if metric.null else None}
    return Measure(value, value * 0.9, value * 1.1, 256, **beside)


def _layers(cell: Cell, rng: random.Random) -> list[Layer]:
    """Six layers that were measured, and one that was refused."""
    trained = cell.state != "init"
    ease = EASE.get(cell.group, 1.0) * (0.4 if cell.model.endswith("_d4") else 1) if trained else 1.3
    declared = [m for m in METRICS.values() if m.probe == cell.probe and m.layered and m.name not in COMBINED]
    layers = []
    for i in range(6):
        found = {}
        for metric in declared:
            measure = _plain(metric, trained, rng)
            if metric.name in RUNGS:
                value = RUNGS[metric.name] * ease * (0.4 + 0.1 * i) * rng.uniform(0.95, 1.05)
                measure = Measure(value, value * 0.93, value * 1.08, 256, null=1.41)
            elif metric.name == "layer_lie_ratio":
                value = (1 - (1 - 0.5 * ease) * i / 5 if trained else 1.0) * rng.uniform(0.95, 1.05)
                measure = Measure(value, value * 0.9, value * 1.1, 256, null=1.0)
            found[metric.name] = measure
        side = 32 >> (i // 2)
        layers.append(Layer(f"stages.{i // 2}.{i % 2}", i / 5, (16 << (i // 2), side, side), metrics=found))
    refused = Layer("head.norm", 1.0, (), 0.0, "no declared layout: (B, 65, 64)")
    return [*layers, refused] if declared else []


def _sweep(cell: Cell, rng: random.Random) -> dict[str, list[float]]:
    """Curves over t along each generator: 0 at 0, up to a plateau."""
    curves: dict[str, list[float]] = {}
    group: Any = GROUPS[cell.group]
    height = 1.2 * EASE.get(cell.group, 1.0) if cell.state != "init" else 1.2
    for generator in group.generators():
        t = list(group.sweep(generator, 32))
        peak = max(map(abs, t))
        error = [height * rng.uniform(0.97, 1.03) * abs(value) / (abs(value) + 0.2 * peak) for value in t]
        shown = {"t": t, "error": error, "lo": [0.9 * e for e in error], "hi": [1.1 * e for e in error]}
        shown |= {"raw": error, "floor": [0.1 * e for e in error], "null": [1.4] * len(t)}
        curves |= {f"{generator}_{key}": values for key, values in shown.items()}
    return curves


def _circuits(cell: Cell, rng: random.Random) -> dict[str, list[Any]]:
    """A census, and families whose members are quarter turns of each other."""
    trained = cell.state != "init"
    free = 0.3 if trained else 0.9
    members = 4 if cell.group in ("c4", "d4") else 2
    kinds = (
        {"fixed": 0.4, "pair": 0.5, "orbit4": 0.0, "other": 0.1}
        if members == 2
        else {"fixed": 0.2, "pair": 0.2, "orbit4": 0.5, "other": 0.1}
    )
    census = {kind: round(share * (1 - free), 4) for kind, share in kinds.items()} | {"unmatched": free}
    families = []
    for i in range(3):
        kernel = [[[rng.gauss(0, 1) for _ in range(4)] for _ in range(4)] for _ in range(3)]
        turned = [kernel]
        for _ in range(members - 1):
            turned.append([[list(row) for row in zip(*reversed(plane), strict=True)] for plane in turned[-1]])
        known = {
            "layer": "stem.conv",
            "members": list(range(i * members, (i + 1) * members)),
            "correlation": 0.9 - 0.2 * i,
        }
        families.append(known | {"matched": trained and i < 2, "kernels": turned})
    angles = [15.0 * k for k in range(24)]
    tuning = []
    for one in families:
        peaks = [360 * k / members for k in range(members)]
        responses = [[math.exp(3 * (math.cos(math.radians(a - peak)) - 1)) for a in angles] for peak in peaks]
        tuning.append({k: v for k, v in one.items() if k != "kernels"} | {"angles": angles, "responses": responses})
    layers = [{"layer": f"stages.{i}", "depth": i / 3} | census for i in range(4)]
    return {"census": layers, "filters": families, "tuning": tuning}


def _slices(cell: Cell, rng: random.Random) -> dict[str, list[Any]]:
    """A valley: bowls along lines and on the plane, flat orbits, and ways to other weights over a hill or none."""
    low, high = (0.1, 2.3) if cell.state != "init" else (2.3, 2.4)
    times = [k / 5 - 1 for k in range(11)]
    bowls = [[low + rng.uniform(1, 4) * t * t for t in times] for _ in range(4)]
    hills = {("init", "as it is"): 0.1, ("init", "matched"): 0.1, ("init", "random"): 1.0}
    hills |= {("s1", "as it is"): 1.5, ("s1", "matched"): 0.5, ("s1", "random"): 1.6}
    paths = [
        {"to": to, "order": order, "losses": [low + (high - low) * (k / 10) * (to == "init") + 4 * hill * k / 10 * (1 - k / 10)
                                              for k in range(11)]}
        for (to, order), hill in hills.items() if to != "init" or cell.state != "init"
    ]  # fmt: skip
    return {
        "lines": [{"times": times, "losses": bowl} for bowl in bowls[:2]],
        "surface": [[low + 2 * s * s + rng.uniform(1, 1.1) * t * t for t in times] for s in times],
        "eigenvectors": [{"times": times, "losses": bowls[2], "curvature": 2.0}],
        "orbits": [{"family": "S4", "times": times, "losses": [low] * 11, "random": bowls[3]}],
        "paths": paths,
    }


def _families(rng: random.Random) -> list[dict[str, Any]]:
    """Two families found, one refuted somewhere, and the control."""
    rows = [
        {"family": family, "confirmed": 3, "refuted": 0, "null": null, "r1": rng.uniform(1, 9) * 1e-17,
         "r2": rng.uniform(1, 9) * 1e-16, "r2_single": rng.uniform(1, 9) * 1e-7, "curvature": 0.0, "random": 0.2,
         "pull": 0.1, "imbalance": 0.3}
        for family, null in (("S1", 11), ("S4", 0))
    ]  # fmt: skip
    rows[1] |= {"refuted": 1, "refuted_at": "norm", "change": 1e-2}
    return [*rows, {"family": "C0", "confirmed": 0, "refuted": 2, "null": 0, "r1": 1e-6, "r2": 0.2}]


def _dynamics(rng: random.Random) -> dict[str, list[Any]]:
    """Progressive sharpening up to the edge; one family obeys to rounding, the control does not."""
    steps = []
    for k in range(12):
        lr = 0.1 * (1 - k / 16)
        top = min(2 + 3 * k, 2 / lr) * rng.uniform(0.95, 1.05)
        steps.append({"update": 100 * k, "loss": 2.3 * 0.8**k, "lr": lr, "threshold": 2 / lr, "lambda_max": top,
                      "residual": 0.01 * top, "alignment": rng.uniform(0.2, 0.5), "curvature": 0.2 * top, "gradient": 1.0})  # fmt: skip
    shrinking = [0.5 * 0.98**k for k in range(12)]
    family = {"family": "S8", "instances": 3, "identity": [rng.uniform(1, 9) * 1e-9 for _ in steps]}
    family |= {"imbalance": shrinking, "decay_imbalance": shrinking}
    control = {"family": "C0", "instances": 0, "identity": [rng.uniform(1, 9) * 1e-3 for _ in steps]}
    return {"steps": steps, "families": [family, control]}


def _replicates(plan: Plan, cell: Cell, measure: Measure) -> dict[str, Any]:
    """Bootstrap replicates as wide as the interval, two thirds of their variance from images that all models share."""
    shared, own = (
        np.random.default_rng(int(_sha(*key)[:8], 16)).normal(size=STORED)
        for key in ((plan.data(cell), cell.group, cell.probe), tuple(vars(cell).values()))
    )
    width = (measure.hi - measure.lo) / 2 / 1.96
    drawn = measure.value + width * (math.sqrt(2 / 3) * shared + math.sqrt(1 / 3) * own)
    return {"units": measure.n, "replicates": base64.b64encode(drawn.astype("<f4").tobytes()).decode()}


def make(plan: Plan, cell: Cell) -> Result:
    """One finished cell; that of an epoch is between the untrained and the trained one."""
    if not cell.state.startswith("epoch"):
        return _made(plan, cell)
    first, last = (_made(plan, replace(cell, state=state)) for state in ("init", "final"))
    share = math.log(1 + int(cell.state[6:])) / math.log(1 + RECIPE["epochs"])
    share **= random.Random(_sha(cell.model, cell.seed)).uniform(0.7, 1.4)
    last.metrics = _between(first.metrics, last.metrics, share)
    for before, after in zip(first.layers, last.layers, strict=True):
        after.metrics = _between(before.metrics, after.metrics, share)
    for name, measure in last.metrics.items():
        if METRICS[name].replicated:
            last.metrics[name] = replace(measure, **_replicates(plan, cell, measure))
    last.cell, last.digest = names(plan, cell), _sha("digest", cell)
    last.provenance["weights"] = _sha("weights", cell.model, cell.seed, cell.state)
    return last


def _between(first: dict[str, Measure], last: dict[str, Measure], share: float) -> dict[str, Measure]:
    found = {}
    for name in first.keys() & last.keys():
        a, b = first[name], last[name]
        ends = [
            (1 - share) * getattr(a, end) + share * getattr(b, end) for end in ("value", "lo", "hi") if a.lo is not None
        ]
        found[name] = replace(b, **dict(zip(("value", "lo", "hi"), ends, strict=False)))
    return found


def _made(plan: Plan, cell: Cell) -> Result:
    rng = random.Random(_sha(cell.model, cell.seed, cell.state, cell.group))
    kind = cell.model.split("_")[0]
    labels = plan.data(cell) != "photos"
    metrics: dict[str, Measure] = {}
    curves: dict[str, list[Any]] = {}
    if cell.probe == "orbit":
        metrics = _orbit(cell, labels, rng)
    elif cell.probe == "spectrum":
        metrics, curves = _spectrum(cell, rng)
    elif cell.probe == "slices":
        curves = _slices(cell, rng)
    elif cell.probe == "symmetries":
        curves = {"families": _families(rng)}
    elif cell.probe == "sweep":
        curves = _sweep(cell, rng)
    elif cell.probe == "consistency":
        tops = np.random.default_rng(rng.randrange(2**32)).normal(size=(2, 16, 3))
        curves = ensembles.pack([tops - np.log(np.exp(tops).sum(-1, keepdims=True))], None)
    elif cell.probe == "circuits":
        curves = _circuits(cell, rng)
    elif cell.probe == "dynamics":
        curves = _dynamics(rng)
    layers = _layers(cell, rng)
    left_out = COMBINED | (UNLABELLED if labels else LABELLED) | metrics.keys()
    for name, metric in METRICS.items():
        if metric.probe == cell.probe and name not in left_out:
            values = [layer.metrics[name].value for layer in layers if name in layer.metrics]
            metrics[name] = _plain(metric, cell.state != "init", rng)
            if values:
                mean = sum(values) / len(values)
                metrics[name] = Measure(mean, mean * 0.95, mean * 1.05, 256, null=metrics[name].null)
    if "lie_ratio" in metrics:
        value = 1 - (0.7 - 0.5 * EASE.get(cell.group, 1.0)) * (cell.state != "init") * rng.uniform(0.9, 1.1)
        metrics["lie_ratio"] = Measure(value, value * 0.93, value * 1.07, 256, null=1.0)
    for name, measure in metrics.items():
        if METRICS[name].replicated:
            metrics[name] = replace(measure, **_replicates(plan, cell, measure))
    trained = plan.trained(cell.model)
    return Result(
        names(plan, cell),
        metrics=metrics,
        layers=layers,
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
            "recipe": RECIPE | {"augment": "d4" if cell.model.endswith("_d4") else "none"} if trained else None,
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
    """Write every cell of a plan below `folder`; `change` may alter a result, or drop it by returning None."""
    plan = plan or suite()
    for cell in plan.cells:
        result = make(plan, cell)
        kept = change(cell, result) if change else result
        if kept is not None:
            results.write(kept, folder / cell.path)
    return plan


def fail(result: Result, reason: str, status: Status = Status.failed) -> Result:
    """The same cell, gone wrong."""
    result.status, result.reason, result.metrics, result.layers, result.curves = status, reason, {}, [], {}
    return result
