"""200 configurations that nobody would write: each composes, or is refused before any job by one clear line and exit 2."""

import subprocess
import sys
import time
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from undisturbed import FILES, forget

from eqbench import config, options, schema
from eqbench.cli import main
from eqbench.errors import UserError, one_line

ROOT = Path(__file__).parents[2]
TREES = {name.removesuffix(".yaml"): yaml.safe_load(text) for name, text in FILES.items()}
TREES |= {"data/digits": {"kind": "digits"}, "group/c4": {"action": "c4"}}
NAMES = sorted(name for name in TREES if "/" in name)
SCHEMAS = options.SCHEMAS | {"probe": schema.Orbit}
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
keys = {name: st.sampled_from([f.name for f in fields(SCHEMAS[name.partition("/")[0]])]) | texts for name in NAMES}
PLAUSIBLE = {
    ("model/small", "batch"): st.integers(-1, 64),
    ("model/given", "licence"): texts,
    ("model/given", "image_size"): st.integers(0, 64),
    ("model/small", "args"): st.dictionaries(st.text("abc", min_size=1), leaves, max_size=2),
    ("train/brief", "lr"): st.floats(-0.1, 1),
    ("train/brief", "epochs"): st.integers(0, 9),
    ("train/brief", "augment"): st.sampled_from(["c4", "hflip", "rotation", "c5"]),
    ("train/brief", "clip_grad"): st.none() | st.floats(),
    ("probe/orbit", "images"): st.integers(1, 40),
    ("suite/tiny", "pack"): st.sampled_from(["cell", "group", "run", "seed", "all"]),
    ("data/digits", "crop_pct"): st.floats(0, 1),
    ("group/c4", "placebo"): st.sampled_from(["none", "vflip", "d4", "d2_diagonal", "c4"]),
}
plausible = st.one_of(*(st.tuples(st.just(n), st.just("set"), st.just(k), v) for (n, k), v in PLAUSIBLE.items()))
signs = st.sampled_from(["", "", "+", "++", "~"])
hows = st.sampled_from(["set", "set", "set", "drop", "block", "raw"])
edits = st.sampled_from(NAMES).flatmap(lambda name: st.tuples(st.just(name), hows, keys[name], values))
overrides = st.sampled_from(NAMES).flatmap(
    lambda name: st.builds("{}{}.{}={}".format, signs, st.just(name.replace("/", ".")) | texts, keys[name], leaves)
)


def _write(folder: Path, changes) -> None:
    trees = yaml.safe_load(yaml.safe_dump(TREES))
    raw = {}
    for name, how, key, value in changes:
        tree = trees[name]
        if how == "raw":
            raw[name] = str(value)
        elif how == "drop":
            tree.pop(sorted(tree)[len(key) % len(tree)] if tree else None, None)
        elif how == "block" and isinstance(trees["suite/tiny"].get("blocks"), dict):
            trees["suite/tiny"]["blocks"].setdefault("all", {})[key] = value
        else:
            tree[key] = value
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
        return one_line(error)
    return "composes"


def test_two_hundred_configurations(folder, reliability, capsys):
    counts: Counter[str] = Counter()
    begun = time.monotonic()

    @settings(
        max_examples=200,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(plausible | plausible | edits, max_size=2), st.just([]) | st.lists(overrides, max_size=1))
    @example([], [f"data.digits.kind={'a' * 5000}"])
    def tried(changes, given_overrides):
        _write(folder, changes)
        started = time.monotonic()
        said = _outcome(folder, given_overrides)
        assert time.monotonic() - started < 20, (changes, given_overrides)
        counts["composes" if said == "composes" else "refused"] += 1
        if said != "composes":
            capsys.readouterr()
            forget()
            free = [text for text in given_overrides if not text.startswith(("-", "~"))]
            assert main(["collect", *free]) in (0, 2)
            lines = capsys.readouterr().err.splitlines()
            assert 10 < len(said) < 1000, said
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
