"""Accuracy under change: by its definition image by image, and attacks against the closed form of linear networks."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import eqbench
from eqbench.errors import UserError
from eqbench.groups import get
from eqbench.metrics import METRICS
from eqbench.options import load
from eqbench.probes import attack, robustness
from eqbench.probes.notebook import tensor_subject
from eqbench.results import Status
from eqbench.schema import Robustness

N, C, SIZE = 24, 4, 16
KINDS = ("shift", "rotation", "noise_weak", "noise_medium", "noise_strong", "pgd_weak", "pgd_strong")


class Net(nn.Module):
    """Its class depends on where things are."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * (SIZE - 2) ** 2, C))

    def forward(self, x):
        return 5 * self.body(x)


def images(n: int = N, size: int = SIZE) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def labels(net, x, wrong: int = 4):
    y = net(x).argmax(-1)
    y[:wrong] = (y[:wrong] + 1) % C
    return y


def right(net, x, y):
    with torch.no_grad():
        return (net(x).argmax(-1) == y).double().mean().item()


def measured(net, x, y, **options):
    return eqbench.probe("robustness", net, x, y, **{"resamples": 100} | options).metrics


# ---------------------------------------------------------------- attacks


class Linear(nn.Module):
    """Two classes apart by w x + b."""

    def __init__(self, dtype=torch.float32) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.w = nn.Parameter(torch.randn(3, SIZE, SIZE, dtype=dtype))

    def forward(self, x):
        gap = (x.to(self.w) * self.w).sum((1, 2, 3)) - (0.5 * self.w).sum()
        return torch.stack([gap, -gap], 1)


def worst(net, x, y, eps):
    """Whether an image is right whatever |x' - x| <= eps within [0, 1] does: the gap at the worst corner of the box."""
    w = net.w.detach().double() * torch.where(y == 0, 1.0, -1.0).double().view(-1, 1, 1, 1)
    x = x.double()
    corner = torch.where(w > 0, (x - eps).clamp(min=0), (x + eps).clamp(max=1))
    gaps = (corner * w).sum((1, 2, 3)) - 0.5 * w.sum((1, 2, 3))
    assert gaps.abs().min() > 1e-3, "an image on the border says nothing"
    return (gaps > 0).numpy()


def problem(dtype=torch.float32, n=200):
    net = Linear(dtype)
    x = (torch.rand(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5)) * 1.6 - 0.3).clamp(0, 1).to(dtype)
    with torch.no_grad():
        return net, x, net(x).argmax(-1)


EPS = (1 / 255, 3 / 255)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", EPS)
def test_attacks_on_linear_networks_find_the_worst_case(dtype, eps):
    net, x, y = problem(dtype)
    expected = worst(net, x, y, eps)
    assert 0.1 < expected.mean() < 0.9
    found = attack.strongest(tensor_subject(net, x, y), y, 2, np.ones(len(x)), eps, 10)
    assert (found == expected).all()


def test_an_attack_that_is_none_is_noticed(monkeypatch):
    """Mutations: steps too short to reach the box's side; a box without the ends of [0, 1]; labels of the other class."""
    eps = EPS[1]
    net, x, y = problem()
    expected, subject = worst(net, x, y, eps), tensor_subject(net, x, y)
    free = torch.where(net.w > 0, 1.0, -1.0) * torch.where(y == 0, 1, -1).view(-1, 1, 1, 1)
    assert ((net(x - eps * free).argmax(-1) == y).numpy() != expected).any(), "clipping decides some images"
    assert (attack.strongest(subject, 1 - y, 2, np.ones(len(x)), eps, 10) != expected).any()
    monkeypatch.setattr(attack, "REACH", 0.5)
    assert (attack.strongest(subject, y, 2, np.ones(len(x)), eps, 10) != expected).any()


def test_only_standing_images_are_attacked_and_the_network_is_left_alone():
    net, x, y = problem(n=12)
    net.train()
    net.w.grad = torch.ones_like(net.w)
    subject, standing = tensor_subject(net, x, y), np.arange(12) % 3 == 0
    net.train()
    found = attack.strongest(subject, y, 2, standing.astype(float), EPS[0], 2)
    assert (found <= standing).all()
    assert found.sum() == (worst(net, x, y, EPS[0]) & standing).sum()
    assert net.training
    assert net.w.requires_grad
    assert (net.w.grad == 1).all()
    before = subject.forwards
    assert not attack.strongest(subject, y, 2, np.zeros(12), EPS[0], 2).any()
    assert subject.forwards == before


def test_attacks_find_more_than_chance_does_and_strong_ones_more_than_weak():
    net, x = Net(), images(64)
    y = labels(net, x, 0)
    found = measured(net, x, y, pgd_eps=[4.0, 16.0])
    signs = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    chance = right(net, (x + 4 / 255 * signs).clamp(0, 1), y)
    assert found["pgd_strong_accuracy"].value < found["pgd_weak_accuracy"].value < chance
    assert measured(net, x, y, pgd_eps=[4.0, 16.0]) == found, "the same every time"


# ---------------------------------------------------------------- corruptions


def test_against_the_definitions():
    net, x = Net(), images()
    y = labels(net, x)
    found = measured(net, x, y, shift=0.125, rotation=30.0, noise=[0.1, 0.2, 0.4])
    clean = right(net, x, y)
    assert found["clean_accuracy"].value == clean == 1 - 4 / N
    wide = torch.from_numpy(np.pad(x.numpy(), [(0, 0), (0, 0), (2, 2), (2, 2)], mode="reflect"))
    windows = [wide[..., a : a + SIZE, b : b + SIZE] for a in (0, 4) for b in (0, 4)]
    shift = np.mean([right(net, window, y) for window in windows])
    turn, angles = get("rotation"), [math.radians(t) for t in (-30, -15, 15, 30)]
    turned = np.mean([right(net, turn.filled(x, ("rotation", t)).clamp(0, 1), y) for t in angles])
    for kind, accuracy in {"shift": shift, "rotation": turned}.items():
        assert found[f"{kind}_accuracy"].value == pytest.approx(accuracy)
        assert found[f"{kind}_drop"].value == pytest.approx(clean - accuracy)
    noise = torch.stack([torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(i)) for i in range(N)])
    noisy = []
    for size, sigma in zip(("weak", "medium", "strong"), (0.1, 0.2, 0.4), strict=True):
        noisy.append(right(net, (x + sigma * noise).clamp(0, 1), y))
        assert found[f"noise_{size}_accuracy"].value == pytest.approx(noisy[-1])
        assert found[f"noise_{size}_drop"].value == pytest.approx(clean - noisy[-1])
    assert len({shift, turned, clean, *noisy}) > 4, "networks that change nothing test nothing"
    mean = (shift + turned + np.mean(noisy)) / 3
    assert found["corruption_accuracy"].value == pytest.approx(mean)
    assert found["corruption_drop"].value == pytest.approx(clean - mean)
    for name, measure in found.items():
        assert measure.lo <= measure.value <= measure.hi, name
        assert bool(measure.replicates) == METRICS[name].compared, name
        assert measure.null == (0 if name.endswith("_drop") else y.bincount().max().item() / N), name
    assert found.keys() == {metric.name for metric in METRICS.values() if metric.probe == "robustness"}
    assert {f"{kind}_drop" for kind in KINDS} < found.keys()


@pytest.mark.parametrize(
    ("name", "mutant", "metric"),
    [
        ("crop", lambda x, dy, dx, size: x[..., :size, :size], "shift_accuracy"),
        ("white", lambda x, seeds: torch.zeros_like(x), "noise_strong_accuracy"),
        ("CORRUPTIONS", {"shift": 1.0}, "corruption_accuracy"),
    ],
)
def test_the_definitions_notice_a_mutation(monkeypatch, name, mutant, metric):
    net, x = Net(), images()
    y = labels(net, x)
    before = measured(net, x, y, noise=[0.1, 0.2, 0.4])[metric].value
    monkeypatch.setattr(robustness, name, mutant)
    assert abs(measured(net, x, y, noise=[0.1, 0.2, 0.4])[metric].value - before) > 0.01


def test_who_sees_nothing_loses_nothing():
    class Constant(nn.Module):
        def forward(self, x):
            return x.sum((1, 2, 3))[:, None] * 0 + torch.eye(C)[:1]

    found = measured(Constant(), images(), torch.arange(N) % C)
    for kind in (*KINDS, "corruption"):
        drop = found[f"{kind}_drop"]
        assert (drop.value, drop.lo, drop.hi) == pytest.approx((0, 0, 0), abs=1e-12), kind
        assert found[f"{kind}_accuracy"].value == pytest.approx(1 / C) == found[f"{kind}_accuracy"].null


# ---------------------------------------------------------------- what cannot be measured


def test_what_cannot_be_measured_says_why():
    net, x = Net(), images()
    result = eqbench.probe("robustness", net, x)
    assert (result.status, result.metrics) == (Status.skipped, {})
    assert "no labels" in result.reason
    beyond = eqbench.probe("robustness", net, x, torch.full((N,), C))
    assert beyond.reason == f"labels go up to {C}, and the network has {C} logits"
    small = eqbench.probe("robustness", net, x, labels(net, x), shift=0.01)
    assert "less than half a pixel" in small.reason

    class Broken(nn.Module):
        def forward(self, x):
            return torch.full((len(x), C), math.nan)

    assert eqbench.probe("robustness", Broken(), x, labels(net, x)).status is Status.failed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shift": 0.0}, "shift: expected in"),
        ({"rotation": 0.0}, "rotation: expected in"),
        ({"noise": [0.1, 0.2]}, "noise: expected 3 ascending"),
        ({"noise": [0.1, 0.1, 0.2]}, "noise: expected 3 ascending"),
        ({"pgd_eps": [0.0, 8.0]}, "pgd_eps: expected 2 ascending"),
        ({"pgd_eps": [2.0, 300.0]}, "pgd_eps: expected 2 ascending"),
        ({"pgd_steps": 0}, "pgd_steps: expected in"),
    ],
)
def test_options_out_of_range_are_named(options, said):
    with pytest.raises(UserError, match=said):
        Robustness(**options)


def test_the_defaults_are_those_of_conf():
    assert load("probe", "robustness") == Robustness()


def test_the_toolbox_is_imported_by_the_attack_alone():
    code = "import sys, eqbench.probes.robustness; sys.exit('art' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
