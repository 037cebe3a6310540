"""Models made of other models: what they compute, where they come from, and what boards say of them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from eqbench import (
    cli,
    costs,
    data,
    derived,
    ensembles,
    feeding,
    gains,
    models,
    options,
    preprocessing,
    probes,
    results,
    schema,
    weights,
)
from eqbench.cells import read_cells
from eqbench.combined import Ensemble, Twirled
from eqbench.config import load_suite
from eqbench.derived import matched_mean
from eqbench.errors import UserError
from eqbench.features import Taps
from eqbench.groups import get
from eqbench.groups.lattice import HFLIP
from eqbench.groups.twin import reset_batch_norm, symmetrise
from eqbench.groups.weights import act_on_weights
from eqbench.leaderboard import Board
from eqbench.metrics import METRICS
from eqbench.probes.landscape.group_action import canonical
from eqbench.stats import unpack
from eqbench.symmetries.permutation import apply, find_spaces, permute

ROOT = Path(__file__).parents[1]
WEIGHTS = Path("data/weights")
FILES = {
    "model/a.yaml": "timm: test_resnet\nsource: train\ntrain: brief\nimage_size: 33\nargs: {avg_down: false}\n",
    "model/together.yaml": "source: ensemble\nof: a\nmembers: 5\n",
    "model/weights.yaml": "source: symmetrised\nof: a\ngroup: hflip\nhow: weights\n",
    "model/matched.yaml": "source: symmetrised\nof: a\ngroup: hflip\nhow: matched\n",
    "model/logits.yaml": "source: symmetrised\nof: a\ngroup: d4\nhow: logits\n",
    "train/brief.yaml": "data: digits\nepochs: 1\nwarmup_epochs: 0\nlr: 4e-3\nbatch_size: 32\nsave: []\n",
    "suite/made.yaml": "pack: run\nblocks:\n  digits: {models: [a, together, weights, matched, logits], data: digits,"
    " groups: [hflip], probes: [orbit, consistency], seeds: 5, states: [final], images: 64}\n",
    "config.yaml": "suite: made\n",
}
DERIVED = ("together", "weights", "matched", "logits")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A project whose models are trained for one epoch, or made of these."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(ROOT / "conf", folder / "conf")
    for name, text in FILES.items():
        (folder / "conf" / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        _forget()
        for seed in range(5):
            assert cli.main(["train", "model=a", f"seed=s{seed}"]) == 0
        for model in DERIVED:
            assert cli.main(["derive", f"model={model}"]) == 0
        yield folder
    _forget()


@pytest.fixture(scope="module")
def board(folder):
    plan = load_suite("made")
    for model, seed, state, _ in plan.parts:
        if model in ("a", "together") or seed == "s0":
            assert cli.main(["probe", f"model={model}", f"seed={seed}", f"state={state}"]) == 0
    cells = read_cells(plan, Path("data/cells"))
    return Board(plan, cells.results, cells.stale)


def _forget():
    options.load.cache_clear()
    options.plain.cache_clear()


@pytest.fixture(scope="module")
def x():
    return torch.rand(4, 3, 33, 33, generator=torch.Generator().manual_seed(0))


def network(model, seed="s0", state="final"):
    return models.load_state(weights.state_dir(WEIGHTS, model, seed, state))


@torch.no_grad()
def test_an_ensemble_is_the_mean_of_its_members_logits(folder, x):
    for state in ("init", "final"):
        mean = torch.stack([network("a", f"s{k}", state)(x) for k in range(5)]).double().mean(0)
        assert (network("together", state=state)(x) - mean).abs().max() < 1e-5 * mean.abs().max()


@torch.no_grad()
def test_averaged_logits_are_invariant_and_the_mean_over_the_orbit(folder, x):
    whole, one, d4 = network("logits"), network("a"), get("d4")
    mean = torch.stack([one(d4.act(x, g)) for g in d4.elements()]).double().mean(0)
    assert (whole(x) - mean).abs().max() < 1e-5 * mean.abs().max()
    for g in d4.elements():
        assert (whole(d4.act(x, g)) - whole(x)).abs().max() < 1e-5
    assert (one(x.flip(-1)) - one(x)).abs().max() > 0.1


@torch.no_grad()
def test_colours_are_averaged_before_they_are_normalised(x):
    """Colours are exchanged in the image, and its channels are normalised each in its own way."""
    part = models.init_state(schema.Model("test_resnet", schema.Source.random, image_size=33), 5, 0).eval()
    part.pretrained_cfg = part.pretrained_cfg | {"mean": (0.1, 0.4, 0.7), "std": (0.2, 0.5, 1.0)}
    whole, colours = models.Network(Twirled(part, "rgb_permutations")), get("rgb_permutations")
    mean = torch.stack([models.Network(part)(colours.act(x, g)) for g in colours.elements()]).mean(0)
    assert (whole(x) - mean).abs().max() < 1e-5
    for g in colours.generators():
        assert (whole(colours.act(x, g)) - whole(x)).abs().max() < 1e-5


@torch.no_grad()
def test_averaged_weights_are_symmetric_and_their_norms_fit_the_data(folder, x):
    """At 33 px the grid is symmetric, so the network is; its running statistics are those of its own activations."""
    whole = network("weights")
    for module in whole.modules():
        if isinstance(module, nn.Conv2d):
            assert (module.weight - module.weight.flip(-1)).abs().max() < 1e-6
    assert (whole(x.flip(-1)) - whole(x)).abs().max() < 1e-4
    before = {name: buffer.clone() for name, buffer in whole.named_buffers() if "running" in name}
    plan = load_suite("made")
    images = data.load("digits", plan.option("data", "digits"), schema.Split.train, 1024)
    reset_batch_norm(whole, (x for x, _ in preprocessing.batches(images, 33, 128, whole.interpolation, 1.0)))
    for name, buffer in whole.named_buffers():
        if "running_var" in name:
            assert (buffer / before[name] - 1).abs().max() < 1e-3, name
    trained = dict(network("a").named_buffers())
    assert any((before[name] / trained[name] - 1).abs().max() > 0.1 for name in before if "running_var" in name)


@torch.no_grad()
def test_matching_undoes_a_hidden_order_that_plain_averaging_does_not(x):
    """Weights that Q fixes, where Q = P^-1 T_g pairs channels: their mean over Q is themselves, and over T_g alone is not."""
    conf = schema.Model("test_resnet", schema.Source.random, image_size=33, args={"avg_down": False})
    own = models.Network(models.init_state(conf, 10, 0))
    spaces = find_spaces(canonical(own, x), x)
    order = spaces.random(1)
    hflip = get("hflip")
    pairs = {space: _involution(space.size) for space in order}
    theta = {name: p.detach() for name, p in own.named_parameters()}
    turned = permute(act_on_weights(own, hflip, HFLIP, theta), pairs)
    for name, p in own.named_parameters():
        p.copy_((theta[name] + turned[name]) / 2)
    matched = matched_mean(own, hflip, x)
    assert max(float((a - b).abs().max()) for a, b in zip(matched.parameters(), own.parameters(), strict=True)) < 1e-6
    plain = symmetrise(own, hflip)
    assert max(float((a - b).abs().max()) for a, b in zip(plain.parameters(), own.parameters(), strict=True)) > 1e-2
    assert (apply(own, order)(x) - own(x)).abs().max() < 1e-4


def _involution(size):
    """Units 0 and 1 change places, 2 and 3, and so on."""
    index = torch.arange(size)
    even = size // 2 * 2
    index[:even] = index[:even].view(-1, 2).flip(1).flatten()
    return index


def test_cards_say_what_models_are_made_of(folder):
    card = weights.read_card(WEIGHTS, "together", "s0")
    assert card["origin"] == {"of": "a", "seeds": "s0 s1 s2 s3 s4"}
    for k in range(5):
        member = weights.read_card(WEIGHTS, "a", f"s{k}")
        for state in ("init", "final"):
            assert card["made_of"][f"a/s{k}/{state}"] == member["states"][state]
    assert card["facts"]["parameters"] == 5 * member["facts"]["parameters"]
    assert card["facts"]["family"] == member["facts"]["family"]
    assert card["recipe"] == member["recipe"]
    assert weights.read_card(WEIGHTS, "matched", "s0")["origin"] == {
        "of": "a", "seeds": "s0", "averaged over": "hflip", "by": "matched"
    }  # fmt: skip


def test_made_again_they_are_the_same_bytes_and_follow_their_members(folder):
    for model in DERIVED:
        card = weights.card_path(WEIGHTS, model, "s0")
        before, written = json.loads(card.read_text()), card.stat().st_mtime_ns
        assert cli.main(["derive", f"model={model}"]) == 0
        assert card.stat().st_mtime_ns == written  # nothing to do
        card.unlink()
        assert cli.main(["derive", f"model={model}"]) == 0
        assert json.loads(card.read_text()) == before


def test_a_damaged_member_is_refused(folder, capsys):
    path = weights.state_dir(WEIGHTS, "a", "s3", "final") / weights.FILE
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        assert cli.main(["derive", "model=together"]) == 2
        assert "a/s3/final" in capsys.readouterr().err
    finally:
        path.write_bytes(content)


def test_no_pickle(folder):
    for model in DERIVED:
        assert {path.name for path in (WEIGHTS / model / "s0" / "final").iterdir()} == {"config.json", weights.FILE}


@pytest.mark.parametrize("probe", [name for name, kind in schema.PROBES.items() if kind.single])
def test_what_is_read_from_one_networks_weights_is_skipped_and_says_so(folder, x, probe):
    images = x.repeat(2, 1, 1, 1)
    for model, reason in (("together", "ensemble of 5 networks"), ("logits", "8 transformed images")):
        group = {"group": "hflip"} if schema.PROBES[probe].kinds else {}
        found = probes.probe(probe, network(model), images, torch.arange(8), **group)
        assert found.status is results.Status.skipped
        assert reason in found.reason


def test_layers_of_several_networks_are_refused(folder, x):
    taps = Taps(network("together"), x)
    assert [layer.name for layer in taps.layers] == ["logits"]
    assert taps.coverage == 0
    assert "measure its members" in taps.refused["parts"]
    assert len(Taps(network("weights"), x).layers) > 5


def test_the_ensemble_is_compared_with_its_members_on_the_same_images(board):
    """The board's difference of the shares, its interval from paired replicates, and what the consistency cells say."""
    found = {(one.group, one.metric.name): one for one in board.gains}
    assert {one.model for one in board.gains} == {"together"}
    share = found["hflip", "symmetry_share"]
    cell = {key: result for key, result in board.results.items() if key.probe == "orbit"}
    values = {key.seed: r.metrics["symmetry_share"].value for key, r in cell.items() if key.model == "a"}
    whole = next(r for key, r in cell.items() if key.model == "together").metrics["symmetry_share"].value
    assert len(values) == share.members == 5
    assert share.difference.value == pytest.approx(whole - sum(values.values()) / 5, abs=1e-9)
    lo, hi = share.difference.ends
    assert share.difference.paired
    assert lo < share.difference.value < hi
    apart = [r.metrics["symmetry_share"] for key, r in cell.items() if key.model in ("a", "together")]
    assert hi - lo < min(one.hi - one.lo for one in apart)  # the images are the same
    draws = {key.model + key.seed: unpack(r.metrics["symmetry_share"].replicates) for key, r in cell.items()}
    less = draws["togethers0"] - sum(draws[f"as{k}"] for k in range(5)) / 5
    assert share.difference.error == pytest.approx(less.std(ddof=1) * (64 / 63) ** 0.5, rel=1e-3)
    members = [r for key, r in board.results.items() if key.model == "a" and key.probe == "consistency"]
    assert found["hflip", "consistency_same"].whole == pytest.approx(ensembles.same_prediction(members).value)


def test_without_all_members_there_is_no_comparison(board):
    some = {cell: r for cell, r in board.results.items() if (cell.model, cell.seed) != ("a", "s2")}
    assert Board(board.plan, some, {}).gains == []
    assert gains.table([]).columns.tolist() == gains.COLUMNS


def test_a_group_that_weights_were_averaged_over_is_no_placebo(board):
    """vflip, the placebo of hflip, is in d4, and not in hflip."""
    found = {cell.model: r for cell, r in board.results.items() if cell.probe == "orbit" and cell.seed == "s0"}
    assert "symmetrisation d4" in found["logits"].metrics["placebo_gap"].reason  # vflip is in d4
    assert found["weights"].metrics["placebo_gap"].value is not None
    assert found["logits"].metrics["symmetry_share"].value == pytest.approx(0, abs=1e-6)
    assert found["weights"].metrics["symmetry_share"].value == pytest.approx(0, abs=1e-4)
    assert found["a"].metrics["symmetry_share"].value > 0.02


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("source: ensemble\n", "of: expected the model that it is made of, because source is 'ensemble'"),
        ("source: ensemble\nof: nothing\n", "unknown model 'nothing'"),
        ("source: ensemble\nof: together\n", "not made of another one, and 'together' is made of 'a'"),
        ("source: ensemble\nof: b\n", "'b' is made of 'b'"),
        ("source: ensemble\nof: a\nmembers: 1\n", "members: expected in 2..1000"),
        ("source: ensemble\nof: a\ngroup: hflip\n", "group: expected none"),
        ("source: ensemble\nof: a\ntimm: test_vit\n", "timm: is that of 'a', 'test_resnet'"),
        ("source: ensemble\nof: a\ntrain: brief\n", "train: expected none"),
        ("source: ensemble\nof: efficientnet_lite0\n", "an ensemble takes several"),
        ("source: symmetrised\nof: a\ngroup: hflip\n", "how: expected a value"),
        ("source: symmetrised\nof: a\ngroup: rotation\nhow: logits\n", "'rotation' is not a finite group"),
        ("source: symmetrised\nof: efficientnet_lite0\ngroup: hflip\nhow: weights\n", "data: expected a data set"),
        ("timm: test_resnet\nsource: random\nof: a\n", "of: expected none"),
    ],
)
def test_mistakes_are_named(folder, text, said):
    path = folder / "conf/model/b.yaml"
    path.write_text(text)
    _forget()
    try:
        with pytest.raises(UserError, match=said) as error:
            load_suite("made", ["suite.made.blocks.digits.models=[b]"])
        assert "conf/model/b.yaml" in str(error.value)
    finally:
        path.unlink()
        _forget()


def test_ensembles_share_no_member_and_seeds_count_networks(folder):
    plan = load_suite("made", ["suite.made.blocks.digits.seeds=12"])
    assert sorted({cell.seed for cell in plan.cells if cell.model == "together"}) == ["s0", "s1"]
    assert plan.members("together", "s1") == [("a", f"s{k}") for k in range(5, 10)]
    assert plan.members("weights", "s3") == [("a", "s3")]
    few = load_suite("made", ["suite.made.blocks.digits.seeds=2"])
    assert sorted({cell.seed for cell in few.cells if cell.model == "together"}) == ["s0"]
    assert ("a", "s4") in few.needed(few.cells)  # trained, though it is on no board


def test_weights_follow_the_recipe_and_the_group_of_the_model(folder):
    first = load_suite("made")
    other = load_suite("made", ["train.brief.lr=1e-3"])
    for model in DERIVED:
        assert first.weights(model) != other.weights(model)
    assert first.weights("weights")["symmetry"] == {"action": "hflip"}
    assert first.weights("a") == {key: first.weights("a")[key] for key in ("model", "train", "data")}
    assert not set(schema.DERIVED) & set(first.plain("model", "a"))  # cards of other models are as they were


def test_cells_follow_the_action_of_the_group_that_was_averaged_over(folder):
    """Of averaged logits it is in no weights; models of their own have no such key."""
    first, other = load_suite("made"), load_suite("made", ["group.d4.action=c4"])
    for cell in first.cells:
        same = first.config(cell) == other.config(cell)
        assert same == (cell.model != "logits")
        assert ("symmetry" in first.config(cell)) == (cell.model in ("weights", "matched", "logits"))


def test_averaged_logits_are_planned_with_all_their_forward_passes(folder):
    plan = load_suite("made")
    works = dict(zip(plan.cells, costs.works(plan, list(plan.cells), WEIGHTS), strict=True))
    images = {cell.model: work.images for cell, work in works.items() if cell.probe == "orbit"}
    assert images["logits"] == 8 * images["weights"] == 8 * images["a"]


@torch.no_grad()
def test_networks_whose_modules_share_weights_are_combined(tmp_path):
    conf = schema.Model("coat_lite_tiny", schema.Source.random, args={"serial_depths": [1, 1, 1, 1]})
    nets = [models.init_state(conf, 5, seed).eval() for seed in range(2)]
    x = torch.rand(1, 3, 224, 224)
    for name, whole in (("ensemble", Ensemble(nets)), ("twirled", Twirled(nets[0], "hflip"))):
        sha256 = models.save_state(whole, tmp_path / name)
        assert torch.equal(models.load_state(tmp_path / name).module(x), whole(x))
        assert {path.name for path in (tmp_path / name).iterdir()} == {"config.json", weights.FILE}
        assert models.save_state(whole, tmp_path / name) == sha256


def test_statistics_are_of_images_that_the_recipe_trains_on(folder):
    plan = load_suite("made", ["train.brief.fraction=0.1"])
    own = derived._Statistics(plan, plan.option("model", "weights")).images
    whole = data.load("digits", plan.option("data", "digits"), schema.Split.train)
    kept = {whole.images[i].tobytes() for i in feeding.share(whole, 0.1).images.rows}
    assert {own.images[i].tobytes() for i in range(len(own))} == kept
    plan = load_suite("made", ["train.brief.fraction=0.9"])
    many = derived._Statistics(plan, plan.option("model", "weights")).images
    assert len(many) == pytest.approx(derived.IMAGES, abs=10)


def test_what_has_no_batch_norm_needs_no_images(folder, monkeypatch):
    monkeypatch.setattr(preprocessing, "batches", lambda *_: pytest.fail("images are decoded"))
    plan = load_suite("made")
    net = models.Network(models.init_state(schema.Model("test_vit", schema.Source.random, image_size=32), 10, 0))
    derived._Statistics(plan, plan.option("model", "weights")).reset(net)


def test_other_images_are_other_statistics(folder, monkeypatch):
    """The files changed below a name that stayed: what takes its statistics on them is made anew."""
    load = data.load
    before = {model: weights.read_card(WEIGHTS, model, "s0") for model in DERIVED}
    with monkeypatch.context() as patch:
        patch.setattr(data, "load", lambda *args: replace(load(*args), sha256="0" * 64))
        for model in DERIVED:
            assert cli.main(["derive", f"model={model}"]) == 0
            changed = weights.read_card(WEIGHTS, model, "s0")["identity"] != before[model]["identity"]
            assert changed == (model in ("weights", "matched"))
    for model in DERIVED:
        assert cli.main(["derive", f"model={model}"]) == 0
        assert weights.read_card(WEIGHTS, model, "s0") == before[model]


@pytest.mark.parametrize(
    ("verb", "files", "said"),
    [
        ("derive", {"model/b": "source: symmetrised\nof: a\ngroup: rotation\nhow: weights\n"}, "not a finite group"),
        ("derive", {"model/b": "source: symmetrised\nof: efficientnet_lite0\ngroup: hflip\nhow: weights\n"}, "data:"),
        (
            "train",
            {
                "model/b": "timm: test_resnet\nsource: train\ntrain: b\n",
                "train/b": "data: digits\nepochs: 2\npenalty: {form: twirl, group: rotation, weight: 1}\n",
            },
            "takes a finite group, and 'rotation' is continuous",
        ),
        (
            "train",
            {
                "model/b": "timm: test_resnet\nsource: train\ntrain: b\n",
                "train/b": "data: digits\nepochs: 2\npenalty: {form: lie, group: d4, weight: 1}\n",
            },
            "takes a continuous group, and 'd4' is finite",
        ),
    ],
)
def test_verbs_refuse_what_suites_refuse(folder, capsys, verb, files, said):
    paths = {folder / "conf" / f"{name}.yaml": text for name, text in files.items()}
    for path, text in paths.items():
        path.write_text(text)
    _forget()
    try:
        assert cli.main([verb, "model=b"]) == 2
        assert said in capsys.readouterr().err
    finally:
        for path in paths:
            path.unlink()
        _forget()


def test_verbs_know_their_models(folder, capsys):
    for verb, model, other in (
        ("train", "together", "derive"),
        ("fetch", "weights", "derive"),
        ("derive", "a", "train"),
    ):
        assert cli.main([verb, f"model={model}"]) == 2
        assert f"python -m eqbench {other} model={model}" in capsys.readouterr().err


def test_the_gains_metrics_keep_replicates():
    assert all(METRICS[name].replicated for name in gains.COMPARED)


def test_modules_that_are_combined_say_what_timm_says(x):
    conf = schema.Model("test_resnet", schema.Source.random, image_size=33)
    parts = [models.init_state(conf, 7, seed).eval() for seed in range(2)]
    whole = Ensemble(parts)
    assert whole.num_classes == 7
    assert models.facts(whole) | {"parameters": 0} == models.facts(parts[0]) | {"parameters": 0}
    assert models.Network(whole).size == 33
