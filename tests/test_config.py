"""Configuration: every option composes, every mistake is named, cells and digests are what the suite says."""

import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from eqbench import options, schema
from eqbench.config import Cell, load_suite
from eqbench.errors import UserError
from eqbench.options import digest, ids, load, parse_overrides, plain
from eqbench.stamps import _stamp, stamps

ROOT = Path(__file__).parents[1]


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """A copy of conf/ to spoil."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    for cached in (load, plain):
        cached.cache_clear()
    yield tmp_path / "conf"
    for cached in (load, plain):
        cached.cache_clear()


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in options.SCHEMAS for name in ids(kind)])
def test_every_option_composes(kind, name):
    assert load(kind, name)
    if kind == "suite":
        assert load_suite(name).cells


def test_the_demo_is_what_the_readme_says():
    plan = load_suite("demo")
    assert len(plan.cells) == (3 * 7 + 2 + 1) + 4 * 2 * 2 * (4 + 3 + 2 + 2 + 1) + 4 * 2 * 2
    assert Cell("demo", "efficientnet_lite0", "s1", "final", "hflip", "orbit") not in plan.cells  # fetched once
    assert Cell("demo", "efficientnet_lite0", "s1", "init", "d4", "orbit") in plan.cells
    assert Cell("demo", "vit_digits", "s1", "final", "none", "spectrum") in plan.cells  # curvature has no group
    assert plan.data(Cell("demo", "vit_digits", "s1", "final", "none", "spectrum")) == "digits"


@pytest.mark.parametrize(("pack", "parts"), [("seed", 10), ("run", 19), ("group", 150), ("cell", 232)])
def test_packing_changes_parts_not_cells(pack, parts):
    plan = load_suite("demo", [f"suite.demo.pack={pack}"])
    assert len(plan.parts) == parts
    assert sorted(cell for part in plan.parts.values() for cell in part) == sorted(plan.cells)
    assert {cell: plan.config(cell) for cell in plan.cells} == {c: load_suite("demo").config(c) for c in plan.cells}


def test_a_probe_takes_the_groups_of_its_kind():
    cells = {(cell.group, cell.probe) for cell in load_suite("demo").cells}
    assert {group for group, probe in cells if probe == "lie"} == {"translation", "rotation", "scale", "hue"}
    assert {group for group, probe in cells if probe == "orbit"} == {"hflip", "vflip", "c4", "d4"}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("suite.demo.blocks.digits.groups=[rotation]", "probes: 'orbit' takes finite groups, and there is none here"),
        ("suite.demo.blocks.digits_circuits.groups=[hflip,rotation]", "groups: 'rotation' is continuous, and no probe"),
    ],
)
def test_groups_that_no_probe_takes_are_named(override, words):
    with pytest.raises(UserError, match=words):
        load_suite("demo", [override])


def test_a_probe_that_compares_reads_other_weights():
    block = "suite.demo.blocks.digits_surfaces"
    plan = load_suite("demo", [f"{block}.seeds=3", f"{block}.states=[init,final]"])

    def others(seed, state, probe="slices"):
        return plan.others(Cell("demo", "vit_digits", seed, state, "none", probe))

    assert others("s0", "final") == {"init": ("s0", "init"), "s1": ("s1", "final")}
    assert others("s2", "final") == {"init": ("s2", "init"), "s0": ("s0", "final")}
    assert others("s1", "init") == {"s2": ("s2", "init")}
    assert others("s0", "final", "spectrum") == {}
    part = plan.parts["vit_digits", "s2", "final", "all"]
    assert plan.cards(part) == [("vit_digits", "s0"), ("vit_digits", "s2")]
    blocks = ("digits", "digits_circuits", "digits_landscape", "digits_surfaces")
    alone = load_suite("demo", [f"suite.demo.blocks.{name}.seeds=1" for name in blocks])
    assert alone.others(Cell("demo", "vit_digits", "s0", "final", "none", "slices")) == {"init": ("s0", "init")}


def test_overrides_reach_their_cells_alone():
    before, after = load_suite("demo"), load_suite("demo", ["probe.orbit.resamples=500"])
    changed = {cell for cell in before.cells if before.config(cell) != after.config(cell)}
    assert changed == {cell for cell in before.cells if cell.probe == "orbit"}
    after = load_suite("demo", ["model.vit_digits.batch=8"])
    changed = {cell for cell in before.cells if before.config(cell) != after.config(cell)}
    assert changed == {cell for cell in before.cells if cell.model == "vit_digits"}
    assert before.weights("vit_digits") == after.weights("vit_digits")  # a batch size does not retrain
    assert before.weights("vit_digits") == load_suite("demo", ["model.vit_digits.licence=MIT"]).weights("vit_digits")
    assert before.weights("vit_digits") != load_suite("demo", ["train.digits_vit.lr=1e-4"]).weights("vit_digits")


def test_comments_and_order_do_not_count_values_do(conf):
    def read():
        load.cache_clear()
        plain.cache_clear()
        return digest(plain("probe", "orbit"))

    path, before = conf / "probe" / "orbit.yaml", read()
    lines = path.read_text().splitlines()
    path.write_text("# a comment\n" + "\n".join(reversed(lines)))
    assert read() == before
    path.write_text(path.read_text().replace("resamples: 2000", "resamples: 2001"))
    assert read() != before


def test_a_probes_version_is_in_its_cells():
    config = load_suite("demo").config(Cell("demo", "vit_digits", "s0", "final", "hflip", "orbit"))
    assert config["probe"]["version"] == schema.Orbit.version


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["probe.orbit.imags=3"], r"conf/probe/orbit.yaml: unknown key 'imags': did you mean 'images'\?"),
        (["+probe.orbit.typo=1"], r"conf/probe/orbit.yaml: unknown key 'typo'"),
        (["probe.orbit.images=many"], r"conf/probe/orbit.yaml: images: .*Integer"),
        (["probe.orbit.images=2"], r"conf/probe/orbit.yaml: images: expected at least 8, got 2"),
        (["probe.orbit.images="], r"conf/probe/orbit.yaml: images"),
        (["probe.orbit.images={"], r"conf/probe/orbit.yaml: .*images=\{"),
        (["probe.orbt.images=3"], r"unknown probe .*did you mean 'orbit'\?"),
        (["prob.orbit.images=3"], r"unknown kind .*did you mean 'probe'\?"),
        (["images=3"], r"expected <kind>.<id>.<key>=<value>"),
        (["group.transpose.placebo=hflip"], r"suite 'demo' does not use group 'transpose'"),
        (["group.hflip.action=hflop"], r"conf/group/hflip.yaml: action: .*did you mean 'hflip'\?"),
        (["model.vit_digits.source=hubb"], r"conf/model/vit_digits.yaml: source: .*train, hub, file, folder, wheel"),
        (["model.vit_digits.timm=test_vitt"], r"conf/model/vit_digits.yaml: timm: .*did you mean 'test_vit"),
        (["model.vit_digits.train=null"], r"conf/model/vit_digits.yaml: train: expected a value, because source"),
        (["model.vit_digits.train=digit"], r"unknown train 'digit': did you mean 'digits'\?"),
        (["model.vit_digits.sha256=12"], r"conf/model/vit_digits.yaml: sha256: .*64 lower-case hex digits"),
        (
            ["train.digits.warmup_epochs=99"],
            r"conf/train/digits.yaml: warmup_epochs: expected in 0..9, because epochs is 10, got 99",
        ),
        (["train.digits_d4.augment=d5"], r"unknown group 'd5': did you mean 'd4'\?"),
        (
            ["suite.demo.blocks.digits.models=[vit_digit]"],
            r"suite/demo.yaml: blocks.digits: unknown model 'vit_digit'.*'vit_digits'",
        ),
        (["suite.demo.blocks.digits.modls=[a]"], r"blocks.digits: unknown key 'modls': did you mean 'models'\?"),
        (["suite.demo.blocks.digits=3"], r"blocks.digits: expected keys and values"),
        (["suite.demo.blocks.digits.groups=[]"], r"probes: 'orbit' takes finite groups, and there is none here"),
        (["suite.demo.blocks.digits.groups=[c4,c4]"], r"groups: expected each named once"),
        (["suite.demo.blocks.digits.states=[last]"], r"states: expected saved, init, final or epoch-NNN, got 'last'"),
        (["suite.demo.blocks.digits.states=[epoch-003]"], r"no state 'epoch-003': add 3 to `save`"),
        (["suite.demo.blocks.pretrained.states=[epoch-003]"], r"is not trained here"),
        (
            ["suite.demo.blocks.digits.models=vit_digits"],
            r"blocks.digits: models: expected a list, e.g. \[vit_digits\]",
        ),
        (["suite.demo.blocks.digits.states=[epoch-0003]"], r"states: expected saved, init, final or epoch-NNN"),
        (["suite.demo.blocks.digits.images=4"], r"images: expected at least 8"),
        (
            ["probe.orbit.floor_images=200", "suite.demo.blocks.digits.images=64"],
            r"floor_images: expected in 2..images",
        ),
        (["~probe.orbit.images=3"], r"expected <kind>.<id>.<key>=<value>"),
        (["group.c4.placebo=hflip"], r"placebo: expected another group of 4 elements"),
        (["group.c4.action=none"], r"action: expected a group with more than one element"),
        (["train.digits.data=photos"], r"'photos' has no labels to train on"),
        (["train.digits.clip_grad=inf"], r"clip_grad: expected a positive number"),
        (["model.vit_digits.args={pretrained: true}"], r"args.pretrained: is not the model's to set"),
        (["model.vit_digits.timm='foo:bar'"], r"timm: unknown architecture"),
        (["model.vit_digits.timm=test_vit.r160_in1"], r"vit_digits.yaml: timm: .*tag.*did you mean 'r160_in1k'\?"),
        (["model.efficientnet_lite0.package="], r"package"),
        (["suite.demo.pack=jumbo"], r"conf/suite/demo.yaml: pack: .*cell, group, run, seed"),
        (["suite.demo.blocks.pretrained.models=[vit_digits]"], r"also in another block"),
    ],
)
def test_mistakes_are_named(overrides, words):
    with pytest.raises(UserError, match=words) as caught:
        load_suite("demo", overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "text", "words"),
    [
        ("suite/demo.yaml", "pack: run\nblocks: [", r"conf/suite/demo.yaml: .*line"),
        ("model/vit_digits.yaml", "", r"conf/model/vit_digits.yaml: .*missing|timm"),
        ("model/vit_digits.yaml", "just words", r"conf/model/vit_digits.yaml"),
        ("probe/orbit.yaml", "images: ${nowhere}", r"conf/probe/orbit.yaml: .*nowhere"),
        (
            "model/convnext_digits_d4.yaml",
            "defaults: [convnet]\ntrain: digits_d4",
            r"convnext_digits_d4.yaml: .*convnet",
        ),
        ("config.yaml", "suit: demo", r"conf/config.yaml: unknown key 'suit': did you mean 'suite'\?"),
        ("probe/warp.yaml", "images: 8", None),
    ],
)
def test_spoilt_files_are_named(conf, path, text, words):
    (conf / path).write_text(text)
    if words is None:  # a file that no suite names does no harm
        assert load_suite().cells
        return
    with pytest.raises(UserError, match=words) as caught:
        load_suite()
    assert "\n" not in str(caught.value)


def test_overrides_hold_dots_quotes_and_lists():
    parsed = parse_overrides(["model.vit_digits.args={img_size: 32, act_layer: 'gelu'}", "probe.orbit.images=9"])
    assert parsed[0] == ("model", "vit_digits", "args={img_size: 32, act_layer: 'gelu'}")
    assert load("model", "vit_digits", parsed).args == {"img_size": 32, "act_layer": "gelu"}
    assert load("model", "resnet_digits", parsed) == load("model", "resnet_digits")


def test_a_star_reaches_every_option_and_a_later_override_wins():
    plan = load_suite("demo", ["model.*.batch=8", "model.vit_digits.batch=4"])
    batches = {model: plan.option("model", model).batch for model in plan.models}
    assert batches.pop("vit_digits") == 4
    assert set(batches.values()) == {8}
    with pytest.raises(UserError, match=r"unknown key"):
        load_suite("demo", ["probe.*.resample=500"])
    with pytest.raises(UserError, match=r"unknown probe"):
        load_suite("demo", ["probe.nonsense*.images=32"])


def test_integers_read_without_hydra_are_the_same():
    for text in ("batch=8", "batch=+8"):  # the second, Hydra reads
        assert load("model", "vit_digits", parse_overrides([f"model.vit_digits.{text}"])).batch == 8
    with pytest.raises(UserError, match="epochs"):
        load("train", "digits", parse_overrides(["train.digits.epochs=0"]))


def test_stamps_follow_files(tmp_path):
    folder = tmp_path / "images"
    (folder / "cat").mkdir(parents=True)
    (folder / "cat" / "1.png").write_bytes(b"1")
    trees = [
        {"data": {"kind": "folder", "train": None, "test": str(folder)}},
        {"data": {"kind": "timm", "root": str(folder)}},
    ]
    for tree in trees:
        _stamp.cache_clear()
        before = stamps(tree)
        assert stamps(tree) == before
        (folder / "cat" / f"{len(list(folder.rglob('*')))}.png").write_bytes(b"2")
        _stamp.cache_clear()
        assert stamps(tree) != before
    assert stamps({"data": {"kind": "digits"}}) == {}
    assert stamps({"model": {"source": "wheel", "package": "yaml"}})["yaml"]
    with pytest.raises(UserError, match="nowhere: no such file"):
        stamps({"model": {"source": "file", "path": "nowhere"}})
    with pytest.raises(UserError, match="pip install no-such-package"):
        stamps({"model": {"source": "wheel", "package": "no_such_package"}})


def test_what_is_read_directly_is_what_hydra_composes():
    """Every option of conf/, read by `load` and composed by Hydra."""
    direct = 0
    for kind in options.SCHEMAS:
        for name in options.ids(kind):
            text = (ROOT / f"conf/{kind}/{name}.yaml").read_text()
            if options.COMPOSED.search(text):
                continue
            direct += 1
            with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
                composed = OmegaConf.to_container(compose(f"{kind}/{name}"), resolve=True)[kind]
            target = options.SCHEMAS[kind] if kind != "probe" else options.SCHEMAS[kind][name]
            composed = options._inherited(composed, (), name) if "of" in composed else composed
            assert options.load(kind, name) == options._strict(target, composed, name)
    assert direct > 40
