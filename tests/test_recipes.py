"""Recipes as conf/train composes them: penalties, saved states, and what they make of a placebo."""

from types import SimpleNamespace

import pytest

from eqbench import costs, groups, measuring, schema
from eqbench.config import Plan, load_suite
from eqbench.errors import UserError
from eqbench.options import parse_overrides
from eqbench.schema import Pack, Train
from eqbench.tasks import Task

TWIRL = "train.digits.penalty={form: twirl, group: hflip, weight: 0.5}"
LIE = "train.digits.penalty={form: lie, group: rotation, weight: 2}"


def plan(*overrides):
    return Plan("", Pack.run, {}, parse_overrides(overrides))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (TWIRL.replace("twirl", "twist"), r"conf/train/digits.yaml: penalty.form: .*twirl, lie"),
        (TWIRL.replace("hflip", "hflop"), r"unknown group 'hflop': did you mean 'hflip'\?"),
        (TWIRL.replace("hflip", "none"), r"conf/train/digits.yaml: penalty.group: expected an option of conf/group"),
        (TWIRL.replace("hflip", "hue"), r"digits.yaml: penalty.group: form 'twirl' takes a finite group, and 'hue' is"),
        (
            LIE.replace("rotation", "c4"),
            r"digits.yaml: penalty.group: form 'lie' takes a continuous group, and 'c4' is",
        ),
        (TWIRL.replace("0.5", "0"), r"conf/train/digits.yaml: penalty.weight: expected a positive number, got 0"),
        (TWIRL.replace("0.5", ".nan"), r"conf/train/digits.yaml: penalty.weight"),
        (TWIRL.replace(", weight: 0.5", ""), r"conf/train/digits.yaml: the key .*weight is missing"),
        (TWIRL.replace("weight", "wait"), r"conf/train/digits.yaml: .*wait"),
        ("train.digits.opt=adam", r"conf/train/digits.yaml: opt: .*adamw, sgd"),
        ("train.digits.momentum=1", r"conf/train/digits.yaml: momentum: expected in \[0, 1\), got 1"),
        ("train.digits.fraction=0", r"conf/train/digits.yaml: fraction: expected in \(0, 1\], got 0"),
        ("train.digits.augment=hvlip", r"unknown group 'hvlip': did you mean"),
        ("train.digits.save=[11]", r"conf/train/digits.yaml: save: expected epochs in 1..10, got 11"),
        ("suite.demo.blocks.digits.states=[saved,saved]", r"states: expected each named once"),
    ],
)
def test_mistakes_of_recipes_are_named(override, words):
    with pytest.raises(UserError, match=words) as caught:
        load_suite("demo", [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "name", "key"),
    [
        (TWIRL.replace("hflip", "transpose"), "transpose", "penalty"),
        (LIE.replace("rotation", "shear_x"), "shear_x", "penalty"),
        ("train.digits.augment=shear_y", "shear_y", "group"),
    ],
)
def test_groups_of_recipes_are_options_of_the_suite_and_decide_the_weights(override, name, key):
    """An override of a group that nothing else uses reaches the suite, and the weights know how it acts."""
    load_suite("demo", [override, f"group.{name}.placebo=none"])
    with pytest.raises(UserError, match=f"does not use group '{name}'"):
        load_suite("demo", [f"group.{name}.placebo=none"])
    assert plan(override).weights("resnet_digits")[key] == {"action": name}
    assert plan().weights("resnet_digits") != plan(override).weights("resnet_digits")
    task = Task.of(plan(override), "resnet_digits", "s3")
    assert (task.augment if key == "group" else task.penalised) is groups.get(name)
    assert (task.penalised if key == "group" else task.augment) is None


def test_penalties_are_groups_of_the_fingerprint():
    changed = [load_suite("demo", [LIE, f"group.rotation.action={action}"]).fingerprint for action in ("scale", "hue")]
    assert changed[0] != changed[1]


@pytest.mark.parametrize(
    ("epochs", "saved"), [(1, []), (2, [1]), (3, [1, 2]), (4, [1, 2]), (5, [1, 2, 4]), (100, [1, 2, 4, 8, 16, 32, 64])]
)
def test_states_are_saved_at_powers_of_two_below_the_last_epoch(epochs, saved):
    recipe = Train("digits", epochs, warmup_epochs=0)
    assert recipe.save is None
    assert recipe.saved == saved
    assert Train("digits", 9, save=[7, 2, 7]).saved == [2, 7]
    assert Train("digits", 9, save=[]).saved == []


def test_saved_stands_for_every_state_that_a_model_has():
    """Each model's own; weights that are not trained here have two, those without weights one."""
    digits, pretrained = (
        "suite.demo.blocks." + block for block in ("digits.states=[saved]", "pretrained.states=[saved]")
    )
    asked = [digits, pretrained, "suite.demo.blocks.pretrained.models=[efficientnet_lite0,untrained-test_vit]"]
    asked += ["train.digits.save=[3,7]", "train.digits_vit.save=[]"]
    states: dict[str, list[str]] = {}
    for cell in load_suite("demo", asked).cells:
        if cell.probe == "orbit" and cell.state not in states.setdefault(cell.model, []):
            states[cell.model].append(cell.state)
    assert states["resnet_digits"] == ["init", "epoch-003", "epoch-007", "final"]
    assert states["convnext_digits_d4"] == ["init", *(f"epoch-{2**k:03d}" for k in range(5)), "final"]
    assert states["vit_digits"] == ["init", "final"]
    assert states["efficientnet_lite0"] == ["init", "final"]
    assert states["untrained-test_vit"] == ["init"]


@pytest.mark.parametrize(
    ("recipe", "placebo", "said"),
    [
        ({"augment": "d4"}, "vflip", "augmentation d4"),
        ({"augment": "d4"}, "d4_shifted", None),
        ({"augment": "none"}, "vflip", None),
        ({"augment": "rotation"}, "c4", "augmentation rotation"),
        ({"augment": "rotation"}, "vflip", None),
        ({"augment": "affine"}, "translation_circular", "augmentation affine"),
        ({"augment": "translation"}, "translation_scrambled", None),
        ({"augment": "hue"}, "rgb_cycle", "augmentation hue"),
        ({"augment": "hue"}, "rgb_permutations", None),
        ({"augment": "none", "penalty": {"group": "d4"}}, "vflip", "penalty d4"),
        ({"augment": "none", "penalty": {"group": "rotation"}}, "c4", "penalty rotation"),
        ({"augment": "c4", "penalty": {"group": "transpose"}}, "d2_diagonal", None),
        ({"augment": "vflip", "penalty": {"group": "d4"}}, "vflip", "augmentation vflip and penalty d4"),
        ({"augment": "scale", "penalty": None}, "c4", None),
        ({}, "vflip", None),
    ],
)
def test_what_training_taught_is_no_placebo(recipe, placebo, said):
    uses = {"group": recipe.get("augment", "none"), "penalty": (recipe.get("penalty") or {}).get("group", "none")}
    config = {key: {"action": name} for key, name in uses.items() if name != "none"}
    for state in ("init", "epoch-002", "final"):
        card = {"recipe": recipe, "config": config}
        part = SimpleNamespace(card=card, where=("resnet_digits", "s0", state), plan=plan())
        reason = measuring.State._learned(part, groups.get(placebo))
        if said is None or state == "init":
            assert reason is None
        else:
            assert reason == f"{placebo} is part of the training {said}, so it is no placebo"


@pytest.mark.parametrize("group", [group for group in groups.GROUPS.values() if group.kind == schema.CONTINUOUS])
def test_finite_subgroups_are_flows_that_come_to_whole_elements(group):
    """Each of their generators is exp(tX) for one of the group's own: as pixels, not as names."""
    import torch

    x = torch.rand(1, 3, 12, 12, dtype=torch.float64)
    times = {"c4": torch.pi / 2, "translation_circular": 3.0, "rgb_cycle": 2 * torch.pi / 3}
    for subgroup in group.subgroups():
        for g in subgroup.generators():
            own = [
                group.filled(x, (name, t))
                for name in group.generators()
                for t in _times(group, name, times[subgroup.name])
            ]
            assert min(float((y - subgroup.act(x, g)).abs().max()) for y in own) < 1e-9


def _times(group, name, t):
    return [sign * t for sign in (1, -1) if t <= group.farthest(name, 12)]


def test_a_penalty_doubles_the_work_of_training(tmp_path):
    works = [costs.train_work(plan(*overrides), "resnet_digits", tmp_path) for overrides in ([], [TWIRL])]
    assert works[1].images == 2 * works[0].images


def test_a_record_adds_to_the_work_of_training(tmp_path):
    works = [
        costs.train_work(plan("train.digits.epochs=10", f"train.digits.dynamics={every}"), "resnet_digits", tmp_path)
        for every in (0, 100, 10)
    ]
    added = [work.images - works[0].images for work in works]
    assert added[0] == 0 < added[1] < added[2]
    assert added[2] == pytest.approx(10 * added[1], rel=0.5)
