"""What training is fed with: random elements of any group, and shares of the images."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from eqbench import feeding, groups
from eqbench.data import Dataset
from eqbench.groups import FiniteGroup

CONTINUOUS = [name for name, group in groups.GROUPS.items() if not isinstance(group, FiniteGroup)]


def seeded(number=0):
    return torch.Generator().manual_seed(number)


@pytest.fixture
def drawn(monkeypatch):
    """The elements of rotations and translations that act."""
    found = []
    for name in ("rotation", "translation"):
        group = groups.get(name)
        monkeypatch.setattr(group, "filled", lambda x, g: found.append((g, len(x))) or x)
    return found


def test_each_eighth_of_a_batch_draws_its_own_element(drawn):
    x = torch.rand(20, 3, 8, 8)
    assert torch.equal(feeding.augment(groups.get("rotation"), x, seeded()), x)
    assert [count for _, count in drawn] == [3, 3, 3, 3, 2, 2, 2, 2]
    assert len({t for (_, t), _ in drawn}) == 8
    drawn.clear()
    feeding.augment(groups.get("rotation"), x[:3], seeded())
    assert [count for _, count in drawn] == [1, 1, 1]


def test_elements_are_drawn_uniformly_from_the_groups_range(drawn):
    x, generator = torch.rand(8, 3, 24, 24), seeded(1)
    for name, reach in (("rotation", math.pi), ("translation", 12.0)):
        drawn.clear()
        for _ in range(100):
            feeding.augment(groups.get(name), x, generator)
        ts = np.array([t for (_, t), _ in drawn])
        assert kstest(ts, "uniform", (-reach, 2 * reach)).pvalue > 1e-3
        for generator_name in groups.get(name).generators():
            share = np.mean([g == generator_name for (g, _), _ in drawn])
            assert share == pytest.approx(1 / len(groups.get(name).generators()), abs=0.08)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_every_continuous_group_augments_images_of_any_size(name):
    """The same by the same generator, of the same size, finite, and each part as the group moves it."""
    group = groups.get(name)
    for size in (24, 33):
        x = torch.rand(16, 3, size, size, generator=seeded(2))
        feeding.check(group, size)
        y = feeding.augment(group, x, seeded(5))
        assert y.shape == x.shape
        assert y.dtype == x.dtype
        assert y.isfinite().all()
        assert torch.equal(y, feeding.augment(group, x, seeded(5)))
        assert not torch.equal(y, feeding.augment(group, x, seeded(6)))
        assert (y[:2] - x[:2]).abs().max() > 0


@pytest.mark.parametrize("name", ["rotation", "scale", "shear_x", "affine"])
def test_images_to_train_on_have_no_disc(name):
    """Nothing moved is nothing changed; what is moved agrees with `act` inside its disc and covers what lies outside."""
    group, x = groups.get(name), torch.rand(2, 3, 24, 24, dtype=torch.float64)
    for generator in group.generators():
        assert (group.filled(x, (generator, 0.0)) - x).abs().max() < 1e-12
    moved, seen = (method(x, (generator, 0.1)) for method in (group.filled, group.act))
    assert (moved - seen)[..., 11:13, 11:13].abs().max() < 1e-12
    assert (seen[..., 0, 0] - 0.5).abs().max() < 1e-12
    assert (moved[..., 0, 0] - 0.5).abs().max() > 1e-3


def toy(counts=(50, 20, 3), name="toy"):
    labels = np.repeat(np.arange(len(counts)), counts)[np.random.default_rng(0).permutation(sum(counts))]
    images = [np.full((4, 4, 3), i) for i in range(len(labels))]
    return Dataset(name, images, labels.astype(np.int64), [str(c) for c in range(len(counts))], "0" * 64)


def kept(dataset, fraction):
    found = feeding.share(dataset, fraction)
    return [int(found.images[i].flat[0]) for i in range(len(found))], found.labels


def test_a_share_is_balanced_and_nested_and_in_order():
    whole = toy()
    before: set[int] = set()
    for fraction in (0.01, 0.1, 0.3, 0.5, 1.0):
        rows, labels = kept(whole, fraction)
        assert rows == sorted(set(rows))
        assert np.array_equal(labels, whole.labels[rows])
        assert np.bincount(labels).tolist() == [max(1, round(fraction * n)) for n in (50, 20, 3)]
        assert before <= set(rows)
        before = set(rows)
    assert feeding.share(whole, 1.0) is whole


def test_a_share_is_the_same_always_and_another_for_other_data():
    assert kept(toy(), 0.3)[0] == kept(toy(), 0.3)[0]
    assert kept(toy(), 0.3)[0] != kept(toy(name="other"), 0.3)[0]
    rows = kept(toy((400,)), 0.5)[0]
    assert kstest(rows, "uniform", (0, 400)).pvalue > 1e-3, "not the first ones"
