"""Damaged files: weights, cards, results, manifests and checkpoints are noticed, and the same verbs put them right."""

import io
import json
import pickle
import random
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch
from undisturbed import contents, different

PIECES = {
    "result": "data/cells/tiny/*/s0/final/*/orbit.json",
    "manifest": "data/parts/tiny/*/s0/final/all.json",
    "card": "data/weights/*/s0/card.json",
    "weights": "data/weights/*/s0/*/model.safetensors",
}


@pytest.fixture
def finished(stages, tmp_path) -> Path:
    """A folder in which every verb has run; its files are the undisturbed ones."""
    folder = tmp_path / "finished"
    shutil.copytree(stages["report"].before, folder)
    return folder


def _rounds(verbs, stages, folder: Path) -> None:
    """Every job of the workflow again, as Snakemake would run them if all of its outputs were gone."""
    for argv in [("fetch", "model=given"), ("train", "model=small"), *stages["probe"].all]:
        done = verbs(folder, *argv)
        assert done["code"] == 0, done["err"]


def _truncate(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def _flip(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << draw.randrange(7)]) + content[at + 1 :]


def _digit(content: bytes, draw: random.Random) -> bytes:
    """Another digit in one number: still good JSON."""
    at = draw.choice([i for i, byte in enumerate(content) if chr(byte).isdigit()])
    return content[:at] + (b"%d" % ((content[at] - 47) % 10)) + content[at + 1 :]


DAMAGES = {
    "truncated": _truncate,
    "one bit flipped": _flip,
    "one digit changed": _digit,
    "emptied": lambda content, draw: b"",
    "zeros": lambda content, draw: bytes(len(content)),
    "another type": lambda content, draw: draw.choice([b"[]", b"null", b"3", b'"x"', b"{}", b"[" * 100_000]),
}


@pytest.mark.parametrize("number", range(3))
def test_every_stored_file_damaged(verbs, stages, finished, number, reliability):
    """All at once; boards are still made (of what is left), and the jobs bring everything back."""
    draw, tried = random.Random(number), Counter()
    for kind, pattern in PIECES.items():
        for path in sorted(finished.glob(pattern)):
            damage = draw.choice([name for name in DAMAGES if kind != "weights" or name != "one digit changed"])
            path.write_bytes(DAMAGES[damage](path.read_bytes(), draw))
            tried[f"stored {kind} {damage}"] += 1
    for verb in ("collect", "plot", "report"):
        done = verbs(finished, verb, "suite=tiny")
        assert done["code"] == 0, done["err"]
    coverage = pd.read_csv(finished / "reports/tiny/results.csv")
    assert set(coverage["status"]) == {"failed"}
    done = verbs(finished, *stages["probe"].argv)
    assert done["code"] == 2
    assert "Traceback" not in done["err"]
    _rounds(verbs, stages, finished)
    for verb in ("collect", "plot", "report"):
        assert verbs(finished, verb, "suite=tiny")["code"] == 0
    assert different(finished, stages["report"].after) == []
    for fault, count in tried.items():
        reliability(fault, count)


def test_weights_and_results_of_one_another(verbs, stages, finished, reliability):
    """Good files in wrong places."""
    swaps = [("data/weights/given/s0/init", "data/weights/given/s0/final", "model.safetensors")]
    swaps += [(f"data/cells/tiny/{model}/s0/final/hflip", f"data/cells/tiny/{model}/s0/final/c4", "orbit.json") for model in ("given", "small")]  # fmt: skip
    for one, other, name in swaps:
        a, b = finished / one / name, finished / other / name
        first = a.read_bytes()
        a.write_bytes(b.read_bytes())
        b.write_bytes(first)
    assert verbs(finished, "collect", "suite=tiny")["code"] == 0
    assert set(pd.read_csv(finished / "reports/tiny/results.csv")["status"]) == {"failed"}
    given = next(argv for argv in stages["probe"].all if "model=given" in argv)
    refused = verbs(finished, *given)
    assert refused["code"] == 2
    assert "expected sha256" in refused["err"]
    _rounds(verbs, stages, finished)
    for verb in ("collect", "plot", "report"):
        assert verbs(finished, verb, "suite=tiny")["code"] == 0
    assert different(finished, stages["report"].after) == []
    reliability("stored weights and results swapped", len(swaps))


class Payload:
    """Pickled code: unpickling it creates the file `ran`."""

    def __reduce__(self):
        return (open, ("ran", "w"))


def _torch(tree) -> bytes:
    buffer = io.BytesIO()
    torch.save(tree, buffer)
    return buffer.getvalue()


CHECKPOINTS = {
    "code": lambda: _torch({"identity": Payload()}),
    "code in the old format": lambda: pickle.dumps({"identity": Payload()}),
    "garbage": lambda: b"PK\x03\x04 no checkpoint",
    "nothing": lambda: b"",
    "another tree": lambda: _torch([1, 2, 3]),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_checkpoint_of_training_that_is_none(verbs, stages, tmp_path, kind, reliability):
    """It is refused in one line that says to delete it, or taken for another training's; its code never runs."""
    folder = tmp_path / "folder"
    shutil.copytree(stages["train"].before, folder)
    checkpoint = folder / "data/weights/small/s0/checkpoint.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(CHECKPOINTS[kind]())
    done = verbs(folder, "train", "model=small")
    assert done["code"] == 2
    assert "checkpoint.pt: not a readable checkpoint" in done["err"]
    assert "Traceback" not in done["err"]
    assert not list(folder.rglob("ran"))
    checkpoint.unlink()
    assert verbs(folder, "train", "model=small")["code"] == 0
    assert contents(folder) == stages["train"].after
    reliability(f"a checkpoint of training that holds {kind}")


def test_a_killed_training_goes_on_from_its_epoch(verbs, stages, tmp_path, reliability):
    """Not from the start: the checkpoint's epochs are not trained again."""
    folder = tmp_path / "folder"
    shutil.copytree(stages["train"].before, folder)
    for operation in range(2, stages["train"].operations):
        ended = verbs(folder, "train", "model=small", operation=operation)
        if list(folder.glob("data/weights/small/s0/epoch-001")) or ended["code"] == 0:
            break
    ended = verbs(folder, "train", "model=small")
    assert ended["code"] == 0
    history = json.loads((folder / "data/weights/small/s0/card.json").read_text())["metrics"]
    assert [entry["epoch"] for entry in history] == [1, 2, 3]
    assert contents(folder) == stages["train"].after
    reliability("kill -9 of train, over and over, one operation later each time", operation - 1)
