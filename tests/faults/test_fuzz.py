"""200 configurations that nobody would write: each composes, or is refused before any job by one clear line and exit 2."""

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from conftest import FILES, forget
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eqbench import config
from eqbench.cli import main
from eqbench.errors import UserError

ROOT = Path(__file__).parents[2]
TREES = {name.removesuffix(".yaml"): yaml.safe_load(text) for name, text in FILES.items()}
TREES |= {"data/own": {"kind": "folder", "test": "images"}, "group/c4": {"action": "c4", "placebo": None}}
KEYS = ["timm", "source", "train", "path", "args", "batch", "data", "epochs", "lr", "save", "images", "split", "pack"]
KEYS += ["blocks", "models", "groups", "probes", "states", "seeds", "kind", "action", "file", "suite", "overrides", "n"]
TEXTS = [
    "",
    " ",
    "small",
    "given",
    "hflip",
    "../x",
    "/etc",
    "a: b",
    "${nowhere}",
    "${oc.env:HOME}",
    "???",
    "~",
    "*",
    "&x",
]
TEXTS += [
    "!!python/object/apply:os.system ['touch ran']",
    "$(touch ran)",
    "`touch ran`",
    "'",
    '"',
    "\n",
    "\0",
    "é",
    "😀",
]
TEXTS += ["init", "epoch-001", "-1", "1e999", "0x1f", "nan", "[", "{", "<b>", "a" * 5000, "null", "true"]

texts = st.sampled_from(TEXTS) | st.text(max_size=8)
numbers = st.integers(-3, 70) | st.sampled_from([2**31, 2**64, -(2**64)]) | st.floats()
leaves = st.none() | st.booleans() | numbers | texts
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))
keys = st.sampled_from(KEYS) | texts
edits = st.tuples(st.sampled_from(sorted(TREES)), st.sampled_from(["set", "drop", "nest", "raw"]), keys, values)
names = st.sampled_from(sorted(n.replace("/", ".") for n in TREES if "/" in n)) | texts
overrides = st.builds(lambda plus, name, key, value: f"{plus}{name}.{key}={value}", st.sampled_from(["", "+", "++", "~"]), names, keys, values)  # fmt: skip


def _write(folder: Path, changes) -> None:
    trees = yaml.safe_load(yaml.safe_dump(TREES))
    raw = {}
    for name, how, key, value in changes:
        tree = trees[name]
        if how == "raw":
            raw[name] = str(value)
        elif how == "drop":
            tree.pop(sorted(tree)[len(key) % len(tree)] if tree else None, None)
        elif how == "nest" and name == "suite/tiny" and isinstance(tree.get("blocks"), dict):
            tree["blocks"]["all"][key] = value
        else:
            tree[sorted(tree)[len(key) % len(tree)] if how == "nest" and tree else key] = value
    for name, tree in trees.items():
        text = raw.get(name, yaml.safe_dump(tree))
        (folder / f"conf/{name}.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))


def _outcome(folder: Path, given_overrides) -> str:
    """What the Snakefile does before any job: "composes", or the line of the refusal."""
    forget()
    try:
        plan = config.load_suite(None, given_overrides)
        plan.stamps(list(plan.cells))
        for cells in plan.parts.values():
            plan.expectation(cells)
    except UserError as error:
        return str(error)
    return "composes"


def test_two_hundred_configurations(folder, reliability, capsys):
    (folder / "images/class").mkdir(parents=True)
    counts: Counter[str] = Counter()
    begun = time.monotonic()

    @settings(max_examples=200, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(edits, max_size=3), st.lists(overrides, max_size=2))
    def tried(changes, given_overrides):
        _write(folder, changes)
        said = _outcome(folder, given_overrides)
        counts["composes" if said == "composes" else "refused"] += 1
        if said != "composes":
            capsys.readouterr()
            forget()
            free = [text for text in given_overrides if not text.startswith(("-", "~"))]
            assert main(["collect", *free]) in (0, 2)
            lines = capsys.readouterr().err.splitlines()
            assert 10 < len(said) < 2000, said
            assert len(lines) <= 1, lines
        assert not list(folder.rglob("ran"))

    tried()
    assert min(counts["composes"], counts["refused"]) >= 20, counts
    reliability("random configuration", sum(counts.values()), **counts, seconds=time.monotonic() - begun)


WRONG = {
    "a value of another type": ("conf/model/given.yaml", "timm: test_resnet\nsource: {a: [b]}\n"),
    "a line break in a key": ("conf/model/given.yaml", '"ti\\nmm": test_resnet\n'),
    "bytes that are no text": ("conf/suite/tiny.yaml", "\xff\xfe"),
    "a YAML tag that would run code": ("conf/suite/tiny.yaml", "!!python/object/apply:os.system ['touch ran']"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_snakemake_says_it_in_one_line_and_starts_nothing(folder, wrong, reliability):
    path, text = WRONG[wrong]
    (folder / path).write_bytes(text.encode("latin-1"))
    command = [str(Path(sys.executable).with_name("snakemake")), "--snakefile", str(ROOT / "Snakefile"), "--cores", "1"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2
    assert [line.startswith("eqbench: error: ") for line in done.stderr.splitlines() if "conf/" in line] == [True]
    assert "Traceback" not in done.stderr
    assert not (folder / "data").exists()
    assert not list(folder.rglob("ran"))
    reliability("configuration that snakemake refuses")
