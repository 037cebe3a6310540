"""Circuits on real training: what augmentation teaches is in the weights, and the nulls do not show it."""

import shutil
from pathlib import Path

import pytest
import torch

from eqbench import cli, data, models, options, preprocessing
from eqbench.groups import get
from eqbench.probes import circuits
from eqbench.probes.base import Subject
from eqbench.probes.circuitry import units as circuit_units
from eqbench.schema import Circuits, Split

ROOT = Path(__file__).parents[1]
SEEDS = ("s0", "s1")
RECIPES = {"plain": ("digits", 4), "d4": ("digits_d4", 6), "hflip": ("digits_d4", 6)}  # shorter than the demo's


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """(augmentation, seed, state, group) -> metrics, without figures."""
    folder = tmp_path_factory.mktemp("circuits")
    shutil.copytree(ROOT / "conf", folder / "conf")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options.load.cache_clear()
        options.plain.cache_clear()
        for name, (recipe, epochs) in RECIPES.items():
            augment = "" if name == "plain" else f"augment: {name}\n"
            Path(f"conf/train/{name}.yaml").write_text(f"defaults: [{recipe}, _self_]\nepochs: {epochs}\n{augment}")
            Path(f"conf/model/{name}.yaml").write_text(f"defaults: [convnext_digits, _self_]\ntrain: {name}\n")
            for seed in SEEDS if name != "hflip" else SEEDS[:1]:
                assert cli.main(["train", f"model={name}", f"seed={seed}"]) == 0
        images = data.load("digits", options.load("data", "digits"), Split.test, 256)
    options.load.cache_clear()
    options.plain.cache_clear()

    def measure(name, seed, state, group):
        network = models.load_state(folder / "data/weights" / name / seed / state)

        def batches(size):
            for x, _ in preprocessing.batches(images, size, 64, "bicubic", 1.0):
                yield x

        subject = Subject(network, network.size, batches, len(images), torch.from_numpy(images.labels))
        placebo = get("vflip") if group == "hflip" else None
        return circuits.run(subject, get(group), placebo, Circuits(tuning_images=0)).metrics

    return measure


@pytest.mark.parametrize("seed", SEEDS)
def test_training_and_augmentation_show_in_the_weights(probed, seed, monkeypatch):
    """Trained against untrained, augmented against plain: intervals apart; unrelated images show neither."""
    init, plain, d4 = (
        probed(*run, "d4") for run in (("d4", seed, "init"), ("plain", seed, "final"), ("d4", seed, "final"))
    )
    for metric in ("weight_symmetry", "regular_symmetry"):
        assert init[metric].hi < plain[metric].lo, metric
    for metric in ("weight_symmetry", "fixed_share", "group_law"):
        assert plain[metric].hi < d4[metric].lo, metric
    assert 3 * plain["weight_symmetry"].hi < d4["weight_symmetry"].lo
    assert abs(init["weight_symmetry"].value) < 0.02
    assert all(abs(found["weight_symmetry"].null) < 0.02 for found in (init, plain, d4))

    true = circuit_units.pair
    monkeypatch.setattr(circuit_units, "pair", lambda *args: (true(*args)[0], true(*args)[1].roll(1, 0)))
    shuffled = probed("d4", seed, "final", "d4")
    assert abs(shuffled["weight_symmetry"].value) < 0.1 * d4["weight_symmetry"].lo


def test_the_placebo_of_mirrored_training(probed):
    """Training with horizontal mirrors makes weights more symmetric under these than under vertical ones; else neither is."""
    init, plain, hflip = (probed(*run, "s0", state, "hflip")["weight_gap"] for *run, state in RUNS)
    assert hflip.lo > max(0.03, plain.hi, init.hi)
    assert plain.lo < 0 < plain.hi
    assert init.lo < 0 < init.hi
    assert abs(hflip.null) < 0.03


RUNS = (("hflip", "init"), ("plain", "final"), ("hflip", "final"))
