import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace

import noise
import numpy as np
import pytest
import torch

from eqbench import data, epochs, feeding, groups, models, options, preprocessing, schema, training, weights
from eqbench.errors import UserError
from eqbench.schema import DataKind, Form, Opt, Source
from eqbench.tasks import Task

MODEL = schema.Model(timm="test_resnet", source=Source.train, train="tiny", image_size=32, args={"drop_rate": 0.2})
# Everything that an interruption might lose: momenta, averaged weights, dropout, batch norm, the group elements drawn.
RECIPE = schema.Train(data="tiny", epochs=3, lr=3e-3, batch_size=16, clip_grad=1.0, augment="d4", model_ema=True)

# Trainings, each in a process that is killed at its `last` update, if that is not 0: how it ended, the epoch of the
# checkpoint that it left, and whether there is a card. The processes are forked before torch has any threads.
SCRIPT = """
import itertools, json, os, signal, sys, traceback
from pathlib import Path
import torch
from eqbench import epochs, groups, schema, tasks, training
model, recipe, data, runs = json.loads(sys.argv[1])
recipe = schema.Train(**recipe | {"penalty": schema.Penalty(**recipe["penalty"])})
losses = epochs.Run._losses

def train(roots, last):
    updates = itertools.count(1)
    def counted(*args):
        if next(updates) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return losses(*args)
    epochs.Run._losses = counted
    for root in roots:
        task = tasks.Task(
            "tiny", "s0", schema.Model(**model), recipe, schema.Data(**data), {},
            augment=groups.get(recipe.augment), penalised=groups.get(recipe.penalty.group),
        )
        training.train(task, Path(root))

for roots, last in runs:
    child = os.fork()
    if not child:
        try:
            train(roots, last)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = Path(roots[0], "tiny/s0", training.CHECKPOINT)
    epoch = torch.load(left, weights_only=True)["epoch"] if left.exists() else None
    print(json.dumps([code, epoch, left.with_name("card.json").exists()]))
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return noise.folder(tmp_path_factory.mktemp("tiny"), 25)


@pytest.fixture
def run(tiny, tmp_path):
    def run(where="a", recipe=RECIPE, model=MODEL, data=tiny, seed="s0"):
        root = tmp_path / where
        tree = {"recipe": asdict(recipe), "model": asdict(model)}
        used = {use: groups.get(name) for use, name in recipe.groups.items()}
        task = Task("tiny", seed, model, recipe, data, tree, used.get("augment"), used.get("penalty"))
        training.train(task, root)
        return weights.read_card(root, "tiny", seed)

    return run


def files(root):
    """Every file below a folder and its content."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_card_states_and_metrics(run, tmp_path, tiny):
    card = run(recipe=replace(RECIPE, save=[1, 3]))
    assert set(card["states"]) == {"init", "epoch-001", "epoch-003", "final"}
    for state, sha256 in card["states"].items():
        assert weights.check_state(tmp_path / "a", "tiny", "s0", state) == sha256
    assert card["states"]["epoch-003"] == card["states"]["final"] != card["states"]["epoch-001"]
    assert (card["source"], card["timm"], card["licence"]) == ("train", "test_resnet", None)
    assert card["origin"] == "trained here"
    assert card["facts"]["num_classes"] == 2
    assert card["data"]["images"] == {"train": 50, "test": 16}
    assert [row["epoch"] for row in card["metrics"]] == [1, 2, 3]
    assert {path.name for path in (tmp_path / "a/tiny/s0").iterdir()} == {*card["states"], "card.json"}

    network = models.load_state(tmp_path / "a/tiny/s0/final")
    test = data.load("tiny", tiny, schema.Split.test)
    x, y = next(preprocessing.batches(test, 32, len(test), network.interpolation))
    with torch.inference_mode():
        logits = network(x)
    assert card["metrics"][-1]["test_loss"] == pytest.approx(float(epochs.F.cross_entropy(logits, y)), rel=1e-5)
    assert card["metrics"][-1]["test_accuracy"] == float((logits.argmax(1) == y).float().mean())


def test_accuracy_of_some_of_the_test_images(run, tmp_path, tiny):
    card = run(recipe=replace(RECIPE, test_images=5))
    assert card["data"]["images"] == {"train": 50, "test": 5}
    assert {row["test_accuracy"] * 5 % 1 for row in card["metrics"]} == {0}
    assert card["states"]["final"] == run("all")["states"]["final"]


def test_init_is_the_seeded_initialisation(run, tmp_path):
    states = {
        seed: run(recipe=replace(RECIPE, epochs=1, warmup_epochs=0), seed=seed)["states"] for seed in ("s0", "s3")
    }
    assert states["s0"]["final"] != states["s3"]["final"]
    for seed, number in (("s0", 0), ("s3", 3)):
        assert states[seed]["init"] == models.save_state(models.init_state(MODEL, 2, number), tmp_path / f"i{number}")


def test_it_learns(run):
    card = run(recipe=replace(RECIPE, epochs=12, augment="none", model_ema=False))
    assert card["metrics"][-1]["test_accuracy"] == 1
    assert card["metrics"][-1]["train_loss"] < card["metrics"][0]["train_loss"]


@pytest.mark.parametrize(("warmup", "floor", "asked"), [(0, 0.0, None), (1, 1e-4, None), (1, 1e-4, 2), (1, 0.0, 5)])
def test_learning_rate_is_warmed_up_then_a_cosine(run, warmup, floor, asked):
    recipe = replace(RECIPE, epochs=4, warmup_epochs=warmup, min_lr=floor, updates=asked)
    updates = asked or 50 // 16

    def lr(update):
        start, first = warmup * updates, recipe.lr / max(warmup * updates, 1)
        if update < start:
            return first + (recipe.lr - first) * update / start
        share = (update - start) / (4 * updates - start)
        return floor + (recipe.lr - floor) * (1 + math.cos(math.pi * share)) / 2

    found = [row["lr"] for row in run(recipe=recipe)["metrics"]]
    assert found == pytest.approx([lr(epoch * updates - 1) for epoch in (1, 2, 3, 4)])


def test_vectors_have_no_weight_decay(run, monkeypatch):
    made = []
    create = epochs.create_optimizer_v2
    monkeypatch.setattr(epochs, "create_optimizer_v2", lambda *a, **k: made.append(create(*a, **k)) or made[-1])
    run(recipe=replace(RECIPE, epochs=1, warmup_epochs=0, weight_decay=0.3))
    decays = {p.ndim > 1: group["weight_decay"] for group in made[0].param_groups for p in group["params"]}
    assert decays == {True: 0.3, False: 0}


def test_same_inputs_same_bytes_however_the_images_are_held(run, tmp_path, monkeypatch):
    torch.manual_seed(1)
    run("a")
    torch.manual_seed(2)
    before = torch.get_rng_state()
    run("b")
    assert torch.equal(torch.get_rng_state(), before)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    monkeypatch.setattr(feeding, "IN_MEMORY", 0)
    run("streamed")
    assert files(tmp_path / "a") == files(tmp_path / "streamed")


class Crash(BaseException):
    """As sudden as a signal, for all that the code under test may catch."""


@pytest.mark.parametrize(
    ("where", "name", "call"),
    [
        (epochs.Run, "_train", 1),
        (epochs.Run, "_train", 3),
        (epochs.Run, "_write", 1),
        (epochs.Run, "_write", 2),
        (os, "replace", 2),
        (models, "save_state", 1),
        (models, "save_state", 2),
        (models, "save_state", 3),
        (weights, "write_card", 1),
    ],
)
def test_resumes_bit_identically_after_a_crash(run, tmp_path, monkeypatch, where, name, call):
    recipe = replace(RECIPE, save=[2])
    run("whole", recipe)
    original, calls = getattr(where, name), []

    def crashing(*args, **keys):
        calls.append(None)
        if len(calls) == call:
            raise Crash
        return original(*args, **keys)

    with monkeypatch.context() as patch:
        patch.setattr(where, name, crashing)
        with pytest.raises(Crash):
            run("broken", recipe)
    assert not weights.card_path(tmp_path / "broken", "tiny", "s0").exists()
    run("broken", recipe)
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_finished_epochs_are_not_repeated(run, monkeypatch):
    trained, one = [], epochs.Run._train

    def counted(self, generator):
        trained.append(self.epoch)
        if trained == [0, 1, 2]:
            raise Crash
        return one(self, generator)

    monkeypatch.setattr(epochs.Run, "_train", counted)
    with pytest.raises(Crash):
        run()
    run()
    assert trained == [0, 1, 2, 2]


def test_resumes_bit_identically_after_kill(tiny, tmp_path):
    penalty = schema.Penalty(Form.twirl, "d4", 0.1)
    recipe = replace(RECIPE, epochs=5, opt="sgd", lr=0.01, augment="rotation", penalty=penalty, fraction=0.6)

    broken, whole = str(tmp_path / "broken"), str(tmp_path / "whole")
    # Of 3 updates an epoch: at the first of the second, and at the second of the fourth.
    runs = [([broken], 4), ([broken], 8), ([broken, whole], 0)]
    arguments = json.dumps([asdict(MODEL), asdict(recipe), asdict(tiny), runs])
    done = subprocess.run([sys.executable, "-c", SCRIPT, arguments], check=False, capture_output=True, text=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found == [[-signal.SIGKILL, 1, False], [-signal.SIGKILL, 3, False], [0, None, True]], done.stderr
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_changed_recipe_starts_anew(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(weights, "write_card", lambda *_: (_ for _ in ()).throw(Crash))
        with pytest.raises(Crash):
            run("edited", replace(RECIPE, save=[1]))
    assert (tmp_path / "edited/tiny/s0/epoch-001").is_dir()
    edited = replace(RECIPE, lr=1e-3)
    run("edited", edited)
    run("fresh", edited)
    assert files(tmp_path / "edited") == files(tmp_path / "fresh")


def test_damaged_checkpoint_is_named(run, tmp_path):
    checkpoint = tmp_path / "a/tiny/s0" / training.CHECKPOINT
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"checkpoint\.pt.*delete it"):
        run()


def test_act_is_the_groups_action_on_each_image():
    group = groups.get("d4")
    x = torch.rand(16, 3, 6, 6)
    drawn = torch.arange(16) % 8
    y = feeding.act(group, x, drawn)
    for i, number in enumerate(drawn.tolist()):
        assert torch.equal(y[i], group.act(x[i], group.elements()[number]))
    assert torch.equal(feeding.act(groups.get("none"), x, torch.zeros(16, dtype=torch.long)), x)


def test_augmentation_draws_every_element_anew(run, monkeypatch):
    drawn = []

    act = feeding.act

    def watched(group, x, numbers):
        if len(x) == 16:  # not the check that the group acts
            drawn.append(numbers)
        return act(group, x, numbers)

    monkeypatch.setattr(feeding, "act", watched)
    augmented = run("d4", replace(RECIPE, epochs=8))["states"]
    counts = torch.bincount(torch.cat(drawn), minlength=8)
    assert counts.sum() == 8 * 48
    assert counts.min() > 24  # 48 expected, standard deviation 6.5
    epochs = torch.cat(drawn).view(8, 48)
    assert len({tuple(row) for row in epochs.tolist()}) == 8
    plain = run("none", replace(RECIPE, epochs=8, augment="none"))["states"]
    assert plain["init"] == augmented["init"]
    assert plain["final"] != augmented["final"]


def test_averaged_weights(run, tmp_path):
    recipes = {
        "raw": replace(RECIPE, model_ema=False),
        "instant": replace(RECIPE, model_ema_decay=1e-12),
        "slow": replace(RECIPE, model_ema_decay=0.99),
    }
    finals = {}
    for name, recipe in recipes.items():
        run(name, recipe)
        module = models.load_state(tmp_path / name / "tiny/s0/final").module
        finals[name] = torch.cat([p.detach().flatten() for p in module.parameters()])
    assert torch.equal(finals["raw"], finals["instant"])
    assert not torch.allclose(finals["raw"], finals["slow"], atol=1e-4)


def test_divergence_names_model_epoch_and_remedy(run, tmp_path):
    model = replace(MODEL, timm="test_convnext", args={})
    with pytest.raises(UserError, match=r"'tiny'.*s0.*epoch 1.*conf/train/tiny\.yaml lower lr \(now 1e\+30\)") as error:
        run(model=model, recipe=replace(RECIPE, lr=1e30, clip_grad=None, model_ema=False, warmup_epochs=0))
    assert "\n" not in str(error.value)
    assert not weights.card_path(tmp_path / "a", "tiny", "s0").exists()


def test_data_that_cannot_be_trained_on(run, tiny, tmp_path):
    with pytest.raises(UserError, match="no labels"):
        run(data=schema.Data(kind=DataKind.photos))
    shutil.copytree(tiny.test, tmp_path / "test")
    (tmp_path / "test/left").rename(tmp_path / "test/right")
    with pytest.raises(UserError, match=r"same classes.*left, right"):
        run(data=replace(tiny, test=str(tmp_path / "test")))


def test_card_of_an_earlier_training_goes_first(run, tmp_path, monkeypatch):
    run()
    monkeypatch.setattr(epochs.Run, "_train", lambda *_: (_ for _ in ()).throw(Crash))
    with pytest.raises(Crash):
        run(recipe=replace(RECIPE, lr=RECIPE.lr / 2))
    assert not weights.card_path(tmp_path / "a", "tiny", "s0").exists()


def test_a_finished_training_is_not_done_again(run, tmp_path, monkeypatch):
    run()
    before = files(tmp_path / "a")
    monkeypatch.setattr(epochs.Run, "_train", lambda *_: (_ for _ in ()).throw(Crash))
    run()
    assert files(tmp_path / "a") == before
    (tmp_path / "a" / "tiny" / "s0" / "final" / "model.safetensors").write_bytes(b"spoilt")
    with pytest.raises(Crash):
        run()


def test_an_image_size_that_does_not_fit_is_refused_before_anything_is_written(run, tmp_path):
    with pytest.raises(UserError, match=r"conf/model/tiny.yaml: image_size: 33 px does not fit"):
        run(model=schema.Model("test_vit", schema.Source.train, train="tiny", image_size=33))
    assert files(tmp_path / "a") == {}


def test_a_recipe_of_the_demo_learns_digits(tmp_path):
    conf = options.load("model", "convnext_digits")
    recipe = replace(options.load("train", conf.train), epochs=2)
    images = options.load("data", recipe.data)
    training.train(Task("m", "s0", conf, recipe, images, {}), tmp_path)
    assert weights.read_card(tmp_path, "m", "s0")["metrics"][-1]["test_accuracy"] >= 0.85


def orbit_variance(folder, group, data_conf):
    """mean_x Var_g of the centred logits of a stored network on the test images."""
    network = models.load_state(folder)
    x, _ = next(preprocessing.batches(data.load("tiny", data_conf, schema.Split.test), 32, 16, network.interpolation))
    with torch.inference_mode():
        orbit = torch.stack([network(group.act(x, g)) for g in group.elements()])
    orbit = orbit - orbit.mean(2, keepdim=True)
    return float((orbit - orbit.mean(0)).square().sum(2).mean())


def test_a_penalty_lowers_what_it_punishes(run, tmp_path, tiny):
    """A small weight costs no accuracy, and takes most of the variance."""
    plain = replace(RECIPE, epochs=10, augment="none", model_ema=False, clip_grad=None)
    found = {}
    for name, penalty in (("plain", None), ("punished", schema.Penalty(Form.twirl, "hflip", 0.1))):
        card = run(name, replace(plain, penalty=penalty))
        assert card["metrics"][-1]["test_accuracy"] == 1
        assert all(("penalty" in row) == bool(penalty) for row in card["metrics"])
        found[name] = orbit_variance(tmp_path / name / "tiny/s0/final", groups.get("hflip"), tiny)
    assert found["punished"] < 0.2 * found["plain"]


@pytest.mark.parametrize("form", Form)
def test_the_first_penalty_in_the_history_is_that_of_the_first_batches(run, form, monkeypatch):
    """Its mean over the updates, as each of them descended on it; the cross-entropy stands beside it."""
    seen = []
    original = epochs.penalty

    def watched(*arguments):
        seen.append(original(*arguments))
        return seen[-1]

    monkeypatch.setattr(epochs, "penalty", watched)
    group = {Form.twirl: "c4", Form.lie: "translation"}[form]
    card = run(recipe=replace(RECIPE, epochs=1, warmup_epochs=0, penalty=schema.Penalty(form, group, 0.5)))
    assert card["metrics"][0]["penalty"] == pytest.approx(sum(loss.item() for loss in seen) / 3, rel=1e-9)
    assert len(seen) == 50 // 16


def test_a_group_that_does_not_take_the_images_is_a_mistake_of_the_recipe(run, tmp_path):
    odd = replace(MODEL, image_size=33)
    shifted = schema.Penalty(Form.twirl, "translation_circular", 1.0)
    for key, recipe in (("augment", {"augment": "translation_circular"}), ("penalty.group", {"penalty": shifted})):
        with pytest.raises(UserError, match=rf"conf/train/tiny\.yaml: {key}: .*multiples of 4, not on 33 x 33"):
            run(model=odd, recipe=replace(RECIPE, **recipe))
    assert files(tmp_path / "a") == {}


def test_a_fraction_of_the_images_in_as_many_updates(run, monkeypatch):
    """Balanced, no other image is seen, each as often as any other, and the schedule is that of all images."""
    seen, batch = [], feeding.Images.batch

    def watched(self, rows):
        if self.dataset.labels is not None and len(self) != 16:
            seen.append(rows)
            assert np.bincount(self.dataset.labels).tolist() == [5, 5]
        return batch(self, rows)

    monkeypatch.setattr(feeding.Images, "batch", watched)
    card = run(recipe=replace(RECIPE, fraction=0.2))
    counts = torch.bincount(torch.cat(seen), minlength=10)
    assert counts.sum() == 3 * 3 * 16
    assert counts.max() - counts.min() <= 3  # at most one an epoch
    assert card["data"]["images"] == {"train": 10, "test": 16}
    monkeypatch.undo()
    assert [row["lr"] for row in run("whole")["metrics"]] == [row["lr"] for row in card["metrics"]]


def test_gradient_descent_with_coupled_decay():
    """One step of sgd: w - lr (g + decay w) for matrices, w - lr g for vectors; with momentum, Nesterov's."""
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2)
    recipe = schema.Train("tiny", 1, warmup_epochs=0, opt=Opt.sgd, momentum=0, lr=0.5, weight_decay=0.2)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = epochs._optimizer(module, recipe)
    gradients = {name: torch.randn_like(p) for name, p in module.named_parameters()}
    for name, p in module.named_parameters():
        p.grad = gradients[name].clone()
    optimizer.step()
    for name, p in module.named_parameters():
        decay = 0.2 * before[name] if p.ndim > 1 else 0
        assert torch.allclose(p, before[name] - 0.5 * (gradients[name] + decay))
    groups_ = epochs._optimizer(module, replace(recipe, momentum=0.8)).param_groups
    assert {(group["momentum"], group["nesterov"]) for group in groups_} == {(0.8, True)}
    assert type(optimizer) is torch.optim.SGD, "decay in the gradient, and so in the momentum"
    assert type(epochs._optimizer(module, replace(recipe, opt=Opt.adamw))) is torch.optim.AdamW
