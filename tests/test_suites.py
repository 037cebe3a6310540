"""The suites that ship with eqbench, beside the demo: what they hold, and that they plan."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
from timm.models import get_pretrained_cfg

from eqbench.config import load_suite
from eqbench.errors import UserError
from eqbench.options import PRETRAINED, ids, load, parse_overrides

ROOT = Path(__file__).parents[1]


def test_imagenet_is_sixty_pretrained_networks_under_every_group():
    plan = load_suite("imagenet")
    names = [model.removeprefix(PRETRAINED) for model in plan.models]
    assert len(names) >= 60
    known = set(timm.list_models(pretrained=True))
    for name in names:
        assert name in known
        assert get_pretrained_cfg(name).num_classes == 1000, name
    assert len({timm.models.model_entrypoint(name.partition(".")[0]).__module__ for name in names}) >= 15
    sizes = {"patches_4", "patches_8"}  # of smaller images
    assert {cell.group for cell in plan.cells} - {"none"} == set(ids("group")) - sizes
    assert {plan.probe(cell).images for cell in plan.cells if cell.probe == "orbit"} == {5000}


def test_imagenet_plans_before_its_weights_are_there(tmp_path):
    (tmp_path / "val" / "n01440764").mkdir(parents=True)
    (tmp_path / "val" / "n01440764" / "a.JPEG").write_bytes(b"")
    command = [str(Path(sys.executable).with_name("snakemake")), "--dry-run", "--quiet", "all"]
    command += ["--directory", str(tmp_path), "--snakefile", str(ROOT / "Snakefile"), "--config", "suite=imagenet"]
    done = subprocess.run(
        [*command, "overrides=[data.imagenet.test=val]"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_cifar10_has_four_families_and_four_treatments_in_both_sizes():
    full, quick = load_suite("cifar10"), load_suite("cifar10-quick")
    families = {"resnet", "convnext", "efficientnet", "vit"}
    grid = {f"{family}_cifar{end}" for family in families for end in ("", "_hflip", "_d4", "_penalty")}
    assert set(quick.models) == grid < set(full.models)
    for plan in (full, quick):
        recipes = {model: plan.option("train", plan.option("model", model).train) for model in grid}
        assert {len(recipe.saved) for recipe in recipes.values()} == {len(recipes["vit_cifar"].saved)}
        assert {end: recipes[f"vit_cifar{end}"].augment for end in ("", "_hflip", "_d4")} == {
            "": "none",
            "_hflip": "hflip",
            "_d4": "d4",
        }
        assert recipes["vit_cifar_penalty"].penalty.group == "hflip"
        assert all(recipe.dynamics for recipe in recipes.values())


def test_pretrained_weights_are_named_by_timm():
    model = load("model", "pretrained-resnet50.a1_in1k", parse_overrides(["model.pretrained-resnet50.a1_in1k.batch=8"]))
    assert (model.timm, model.source, model.batch) == ("resnet50.a1_in1k", "hub", 8)
    mistakes = {"pretrained-resnet50": "<tag>", "pretrained-resnet50.a1_in2k": "did you mean 'a1_in1k'"}
    for name, words in mistakes.items():
        with pytest.raises(UserError, match=words):
            load("model", name)
