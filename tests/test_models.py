"""Models: initialisation by seed, folders that restore bit by bit, networks on images in [0, 1]."""

import json
import random
from pathlib import Path

import pytest
import torch
from torch import nn

from eqbench import models, weights
from eqbench.errors import Unsupported, UserError
from eqbench.schema import Model, Source

TINY = ["test_resnet", "test_convnext", "test_vit"]


def conf(name, **keys):
    return Model(timm=name, source=Source.hub, **keys)


def state_equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("size", [None, 32])
@pytest.mark.parametrize("name", TINY)
def test_a_saved_state_restores_bit_by_bit(name, size, tmp_path):
    module = models.init_state(conf(name, image_size=size), 10, seed=3)
    network = models.Network(module)
    folder = tmp_path / "m" / "s3" / "init"
    sha256 = models.save_state(module, folder)
    assert sha256 == weights.sha256_file(folder / "model.safetensors")
    restored = models.load_state(folder)
    images = torch.rand(2, 3, size or 160, size or 160)
    with torch.no_grad():
        assert torch.equal(restored(images), network(images))
    assert (restored.size, restored.interpolation, restored.crop_pct) == (
        size or 160,
        network.interpolation,
        network.crop_pct,
    )
    assert models.facts(restored) == models.facts(module)
    assert not restored.training
    assert [path.name for path in folder.parent.iterdir()] == ["init"]  # no scratch left


@pytest.mark.parametrize("name", TINY)
def test_the_same_weights_are_the_same_bytes(name, tmp_path):
    hashes = set()
    for index in range(2):
        torch.manual_seed(index)  # the caller's random state must not matter
        module = models.init_state(conf(name, image_size=32), 10, seed=0)
        hashes.add(models.save_state(module, tmp_path / f"state{index}"))
    assert len(hashes) == 1
    configs = {(tmp_path / f"state{index}" / "config.json").read_bytes() for index in range(2)}
    assert len(configs) == 1


def test_the_seed_alone_decides_and_nobody_elses_numbers_are_disturbed(tmp_path):
    torch.manual_seed(5)
    random.seed(5)
    before, python = torch.get_rng_state(), random.getstate()
    first = models.init_state(conf("test_vit"), 10, seed=0)
    folder = tmp_path / "state"
    models.save_state(first, folder)
    models.load_state(folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python
    assert state_equal(first, models.init_state(conf("test_vit"), 10, seed=0))
    assert not state_equal(first, models.init_state(conf("test_vit"), 10, seed=1))


def test_saving_replaces_what_is_there_and_clears_what_a_killed_process_left(tmp_path):
    folder = tmp_path / "final"
    models.save_state(models.init_state(conf("test_resnet"), 10, seed=0), folder)
    (tmp_path / ".final.abc" / "new").mkdir(parents=True)
    (tmp_path / ".final.abc" / "new" / "model.safetensors").write_bytes(b"half")
    sha256 = models.save_state(models.init_state(conf("test_resnet"), 10, seed=1), folder)
    assert weights.sha256_file(folder / "model.safetensors") == sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["final"]
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_a_failed_save_keeps_the_former_state(tmp_path, monkeypatch):
    folder = tmp_path / "final"
    sha256 = models.save_state(models.init_state(conf("test_resnet"), 10, seed=0), folder)

    def full(*args, **keys):
        raise OSError("No space left on device")

    monkeypatch.setattr(models, "save_for_hf", full)
    with pytest.raises(OSError, match="No space"):
        models.save_state(models.init_state(conf("test_resnet"), 10, seed=1), folder)
    assert weights.sha256_file(folder / "model.safetensors") == sha256
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip_header(path):
    path.write_bytes(b"\xff" * 16 + path.read_bytes()[16:])


@pytest.mark.parametrize("damage", [truncate, flip_header, Path.unlink])
def test_a_damaged_state_is_refused_by_name(damage, tmp_path):
    folder = tmp_path / "s0" / "init"
    models.save_state(models.init_state(conf("test_resnet"), 10, seed=0), folder)
    damage(folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors") as caught:
        models.load_state(folder)
    assert "\n" not in str(caught.value)


def test_weights_of_another_shape_are_refused(tmp_path):
    for classes in (10, 12):
        models.save_state(models.init_state(conf("test_resnet"), classes, seed=0), tmp_path / str(classes))
    (tmp_path / "10" / "model.safetensors").write_bytes((tmp_path / "12" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"fc\.weight"):
        models.load_state(tmp_path / "10")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "test_resne"}, "unknown timm architecture 'test_resne': did you mean 'test_resnet'"),
        ({"name": "resnet18.a1_in2k"}, "unknown pretrained tag of 'resnet18' 'a1_in2k': did you mean 'a1_in1k'"),
        ({"name": "org/name"}, "unknown timm architecture 'org/name'"),
        ({"name": "test_resnet", "args": {"colour": 1}}, "timm cannot build 'test_resnet'.*colour"),
    ],
)
def test_mistakes_in_a_model_are_said_in_one_line(keys, message):
    with pytest.raises(UserError, match=message) as caught:
        models.create(conf(**{"name": keys["name"]}, **{k: v for k, v in keys.items() if k != "name"}))
    assert "\n" not in str(caught.value)


def test_the_image_size_and_arguments_reach_the_architecture_and_its_folder(tmp_path):
    small = models.create(conf("vit_tiny_patch16_224", image_size=64, args={"depth": 1}), 10)
    assert small.pos_embed.shape == (1, 1 + 4 * 4, 192)
    assert models.facts(small)["image_size"] == 64
    models.save_state(small, tmp_path / "state")
    restored = models.load_state(tmp_path / "state")
    assert state_equal(restored.module, small)
    assert models.facts(restored) == models.facts(small)
    assert models.create(conf("test_resnet", args={"num_classes": 7})).num_classes == 7


class Mean(nn.Module):
    """The mean of each channel: the normalisation is then seen from outside."""

    def forward(self, images):
        return images.mean(dim=(2, 3))


def test_the_network_normalises_inside_in_any_precision():
    network = models.Network(Mean(), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0), size=8)
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    expected = (images.mean(dim=(2, 3)) - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.5, 0.25, 2.0])
    found = network.to(torch.float64)(images)
    assert found.dtype == torch.float64
    assert torch.allclose(found, expected, atol=1e-7, rtol=0)
    assert network.state_dict() == {}
    with pytest.raises(ValueError, match="size"):
        models.Network(Mean())


def test_the_precision_of_a_timm_network_follows():
    network = models.Network(models.init_state(conf("test_convnext", image_size=32), 10, seed=0))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        single = network(images)
        double = network.to(torch.float64)(images.double())
    assert double.dtype == torch.float64
    assert torch.allclose(single.double(), double, atol=1e-4)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Identity(), "shape"),
        (nn.Flatten(0), "shape"),
        (type("Pair", (nn.Module,), {"forward": lambda self, x: (x, x)})(), "tuple"),
    ],
)
def test_what_gives_no_logits_is_unsupported(module, message):
    with pytest.raises(Unsupported, match=message):
        models.Network(module, size=8)(torch.rand(2, 3, 8, 8))


def test_a_model_without_classifier_is_unsupported():
    network = models.Network(models.create(conf("test_resnet", image_size=32), num_classes=0))
    with pytest.raises(Unsupported, match="no classifier"):
        network(torch.rand(2, 3, 32, 32))


@pytest.mark.parametrize(("name", "family"), list(zip(TINY, ["resnet", "convnext", "vision_transformer"], strict=True)))
def test_facts_for_the_card(name, family):
    module = models.create(conf(name, image_size=32), 10)
    found = models.facts(models.Network(module))
    assert found["family"] == family
    assert found["architecture"] == name
    assert found["parameters"] == sum(p.numel() for p in module.parameters())
    assert (found["image_size"], found["num_classes"], found["mean"]) == (32, 10, [0.5, 0.5, 0.5])
    json.dumps(found, allow_nan=False)


def test_the_card_is_checked_before_weights_are_used(tmp_path):
    with pytest.raises(UserError, match=r"card\.json.*fetch"):
        weights.check_state(tmp_path, "m", "s0", "init")
    folder = weights.state_dir(tmp_path, "m", "s0", "init")
    sha256 = models.save_state(models.init_state(conf("test_resnet"), 10, seed=0), folder)
    weights.write_card(tmp_path, "m", "s0", {"states": {"init": sha256}})
    assert weights.check_state(tmp_path, "m", "s0", "init") == sha256
    with pytest.raises(UserError, match="no state 'final'"):
        weights.check_state(tmp_path, "m", "s0", "final")
    path = folder / "model.safetensors"
    content = path.read_bytes()
    for damaged in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), None):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"model\.safetensors: expected sha256 {sha256}.*delete"):
            weights.check_state(tmp_path, "m", "s0", "init")
        path.write_bytes(content)
    for text in ("{", "[]", '{"states": 3}'):
        weights.card_path(tmp_path, "m", "s0").write_text(text)
        with pytest.raises(UserError, match="delete it"):
            weights.read_card(tmp_path, "m", "s0")
