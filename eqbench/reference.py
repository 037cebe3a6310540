"""Makes costs.csv and sizes.csv, which expected costs are fitted to: python -m eqbench.reference <data folder> ...

The costs are those of the results, trainings and derived models below the folders (data/cells, data/benchmarks); the sizes are
counted on networks of timm that are built without memory for their weights.
"""

import csv
import io
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from eqbench.costs import DERIVE, DERIVED, HERE, TRAIN, Work
from eqbench.errors import UserError
from eqbench.results import Status, read, write_text
from eqbench.weights import read_card

COLUMNS = ("probe", "architecture", "parameters", "pixels", "images", "batch", "seconds", "peak_mb")


def costs(folders: Sequence[Path]) -> list[tuple[Any, ...]]:
    """A row a (probe, network, number of images): the geometric mean of the seconds, and the largest peak, of its cells."""
    found: dict[tuple[str, Work], list[tuple[float, float]]] = {}
    for folder in folders:
        for architecture, work, seconds, peak in [*_cells(folder), *_made(folder)]:
            found.setdefault((architecture, work), []).append((max(seconds, 1e-3), peak))
    return sorted(
        (work.probe, architecture, *work[1:], f"{math.exp(sum(math.log(s) for s, _ in all_) / len(all_)):.4g}", max(p for _, p in all_))
        for (architecture, work), all_ in found.items()
    )  # fmt: skip


def _cells(folder: Path) -> Iterator[tuple[str, Work, float, float]]:
    for path in sorted((folder / "cells").rglob("[!.]*.json")):
        try:
            result = read(path)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        cost, made = result.cost, result.provenance
        if result.status is Status.ok and cost.get("device") == "cpu" and made.get("parameters"):
            images, batch = int(result.config["probe"]["images"]), int(result.config["model"]["batch"])
            pixels = int(made["image_size"]) ** 2
            work = Work(result.cell["probe"], int(made["parameters"]), pixels, images, min(batch, images))
            yield str(made["architecture"]), work, float(cost["seconds"]), float(cost["peak_mb"])


def _made(folder: Path) -> Iterator[tuple[str, Work, float, float]]:
    for path in sorted((folder / "benchmarks").glob("*/*/*.jsonl")):
        verb = path.parts[-3]
        if verb not in (TRAIN, DERIVE):
            continue
        card = read_card(folder / "weights", path.parent.name, path.stem)
        measured = json.loads(path.read_text().splitlines()[-1])
        facts, fed = card["facts"], DERIVED
        if verb == TRAIN:
            recipe = card["config"]["train"]
            fed = recipe["epochs"] * card["data"]["images"]["train"], recipe["batch_size"]
        work = Work(verb, facts["parameters"], facts["image_size"] ** 2, *fed)
        yield facts["architecture"], work, float(measured["s"]), round(float(measured["max_rss"]) * 1.048576)


def sizes() -> Iterator[tuple[str, int, int]]:
    """Every architecture of timm, its parameters, and the side of its images in pixels."""
    import timm
    import torch

    for name in timm.list_models():
        with torch.device("meta"):
            try:
                network: Any = timm.create_model(name, pretrained=False)
            except RuntimeError as error:  # some cannot be built without memory
                print(f"left out: {name}: {error}", file=sys.stderr)
                continue
        yield name, sum(weight.numel() for weight in network.parameters()), network.pretrained_cfg["input_size"][-1]


def _write(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_text(path, text.getvalue())


if __name__ == "__main__":
    _write(HERE / "costs.csv", COLUMNS, costs([Path(folder) for folder in sys.argv[1:] or ["data"]]))
    _write(HERE / "sizes.csv", ("architecture", "parameters", "image_size"), list(sizes()))
