"""The landscape on real training: what mirrored training images do to the symmetry of weights, gradient and Hessian."""

import shutil
from pathlib import Path

import pytest
import torch

from eqbench import cli, data, models, options, preprocessing
from eqbench.groups import get
from eqbench.probes import group_landscape
from eqbench.probes.base import Subject
from eqbench.schema import GroupLandscape, Split

ROOT = Path(__file__).parents[1]
SEEDS = ("s0", "s1", "s2")
RECIPES = {"plain": "", "hflip": "augment: hflip\n"}  # the same images, order and number of steps
CHEAP = {"images": 48, "probes": 2, "trace_products": 2, "points": 3, "max_products": 12}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(recipe, seed, state) -> metrics under hflip, of a small ResNet."""
    folder = tmp_path_factory.mktemp("landscape")
    shutil.copytree(ROOT / "conf", folder / "conf")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options.load.cache_clear()
        options.plain.cache_clear()
        for name, augment in RECIPES.items():
            Path(f"conf/train/{name}.yaml").write_text(f"defaults: [digits, _self_]\nepochs: 6\n{augment}")
            Path(f"conf/model/{name}.yaml").write_text(f"defaults: [resnet_digits, _self_]\ntrain: {name}\n")
            for seed in SEEDS:
                assert cli.main(["train", f"model={name}", f"seed={seed}"]) == 0
        images = data.load("digits", options.load("data", "digits"), Split.train, CHEAP["images"])

        def batches(size):
            for x, _ in preprocessing.batches(images, size, 64, "bicubic", 1.0):
                yield x

        for name in RECIPES:
            for seed in SEEDS:
                for state in ("init", "final") if name == "plain" and seed == "s0" else ("final",):
                    network = models.load_state(folder / "data/weights" / name / seed / state)
                    subject = Subject(network, network.size, batches, len(images), torch.from_numpy(images.labels))
                    measured = group_landscape.run(subject, get("hflip"), None, GroupLandscape(**CHEAP))
                    found[name, seed, state] = measured.metrics
    options.load.cache_clear()
    options.plain.cache_clear()
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_mirrored_training_closes_the_gap_of_the_logits(found, seed):
    """At order 0 intervals are apart in every seed: learned invariance is of the function first."""
    assert found["hflip", seed, "final"]["logit_gap"].hi < found["plain", seed, "final"]["logit_gap"].lo


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_gradient_and_hessian_are_far_more_symmetric_than_under_random_channels(found, recipe, seed):
    """With and without augmentation alike: the two do not order by it here, which is what is to be reported."""
    metrics = found[recipe, seed, "final"]
    for name in ("weight_residual", "gradient_residual", "commutator"):
        assert 0.1 < metrics[name].value < 0.7 * metrics[name].null, name
    assert metrics["gradient_residual"].hi < 0.7 * metrics["gradient_residual"].null


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_exact_symmetry_would_cost_loss(found, recipe, seed):
    """The symmetrised weights are worse in every run; the barrier to the mirror image orders the recipes either way."""
    assert found[recipe, seed, "final"]["symmetry_price"].hi < 0
    assert found[recipe, seed, "final"]["symmetry_barrier"].value >= 0


def test_an_untrained_network_is_statistically_symmetric(found):
    """Random kernels know no side: a small residual says nothing without the untrained one beside it."""
    untrained, trained = (found["plain", "s0", state]["gradient_residual"] for state in ("init", "final"))
    assert untrained.value < trained.lo
