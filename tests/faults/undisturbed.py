"""A small suite (one network given, one trained here), and what an undisturbed run of its verbs leaves behind."""

import json
from dataclasses import dataclass
from pathlib import Path

from eqbench import config, options, runner

FILES = {
    "model/given.yaml": "timm: test_resnet\nsource: file\npath: given.safetensors\nimage_size: 32\nargs: {num_classes: 10}\n",
    "model/small.yaml": "timm: test_resnet\nsource: train\ntrain: brief\nimage_size: 32\n",
    "train/brief.yaml": "data: digits\nepochs: 3\nsave: [1]\n",
    "probe/orbit.yaml": "images: 8\nresamples: 100\nfloor_images: 2\n",
    "suite/tiny.yaml": "pack: run\nblocks:\n"
    "  all: {models: [given, small], data: digits, groups: [hflip, c4], probes: [orbit], states: [final]}\n",
    "config.yaml": "suite: tiny\n",
}


def forget() -> None:
    """What was read from conf/ of another folder."""
    options.load.cache_clear()
    options.plain.cache_clear()


def part(model: str) -> tuple[str, ...]:
    """The command of the job that the workflow runs for this model's final state, in the present folder."""
    plan = config.load_suite("tiny")
    expected = plan.expectation(runner.select(plan, model, "s0", "final", "all"))
    return ("probe", "suite=tiny", f"model={model}", f"expect={expected}")


def contents(folder: Path) -> dict[str, object]:
    """Every file that was made in the folder; of a result, what does not change from run to run."""
    found: dict[str, object] = {}
    for path in sorted(p for top in ("data", "reports") for p in (folder / top).rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if name.startswith(("data/logs", "data/benchmarks")):
            continue
        found[name] = path.read_bytes()
        if name.startswith("data/cells") and not path.name.startswith("."):
            tree = json.loads(path.read_text())
            del tree["checksum"], tree["cost"]
            del tree["provenance"]["started"], tree["provenance"]["git"], tree["provenance"]["dirty"]
            found[name] = tree
    return found


def different(folder: Path, expected: dict[str, object]) -> list[str]:
    """The files that are not as expected, hidden ones included; two of them say when cells ran, and in how many seconds."""
    found = contents(folder)
    own = ("leaderboard.csv", "index.html")
    names = sorted(found.keys() | expected.keys())
    return [
        name
        for name in names
        if (found.get(name) != expected.get(name) if not name.endswith(own) else (name in found) != (name in expected))
    ]


@dataclass
class Stage:
    """One verb of an undisturbed run: the folder before it, what it left, how long and how many operations it took."""

    argv: tuple[str, ...]
    before: Path
    after: dict
    seconds: float
    operations: int
    all: tuple[tuple[str, ...], ...] = ()  # the commands of this verb for every model


def whole(stage: Stage, folder: Path) -> None:
    """Nothing that looks finished is anything but what was there before, or what the verb makes."""
    old = contents(stage.before)
    for name, content in contents(folder).items():
        hidden = any(piece.startswith(".") for piece in Path(name).parts) or name.endswith("checkpoint.pt")
        assert hidden or content in (old.get(name), stage.after.get(name)), name


def again(verbs, stage: Stage, folder: Path) -> None:
    done = verbs(folder, *stage.argv)
    assert done["code"] == 0, done["err"]
    assert contents(folder) == stage.after  # and no leftovers: hidden files are among the contents
