"""Ablation against a network whose asymmetry lies in channels that are known, and what holds of any ablation."""

import numpy as np
import pytest
import timm
import torch
from equivariant import p4, pictures
from torch import nn

import eqbench
from eqbench.errors import Unsupported
from eqbench.groups import get
from eqbench.probes import ablation
from eqbench.probes.circuitry import units as circuit_units
from eqbench.probes.notebook import tensor_subject
from eqbench.results import Status

SMALL = {"layer_images": 0, "resamples": 200, "draws": 2}


class Branches(nn.Module):
    """A p4 network, and a branch of other filters; each layer has channels of both, 24 and 6, in a shuffled order.

    The p4 channels read p4 channels alone: without the others the logits are invariant.
    """

    def __init__(self) -> None:
        super().__init__()
        exact = p4()
        generator = torch.Generator().manual_seed(1)
        a, b = (torch.randperm(30, generator=generator) for _ in range(2))
        first, second, head = torch.randn(30, 3, 5, 5) / 9, torch.randn(30, 30, 3, 3) / 16, torch.randn(5, 30) / 2
        first[:24] = exact[0].weight.detach()
        second[:24] = 0
        second[:24, :24] = exact[2].weight.detach()
        head[:, :24] = 4 * exact[6].weight.detach()
        self.odd = [(a >= 24).nonzero()[:, 0], (b >= 24).nonzero()[:, 0]]
        self.first, self.second, self.head = nn.Conv2d(3, 30, 5), nn.Conv2d(30, 30, 3), nn.Linear(30, 5)
        for layer, weight in ((self.first, first[a]), (self.second, second[b][:, a]), (self.head, head[:, b])):
            layer.weight.data = weight
            layer.bias.data.zero_()

    def forward(self, x):
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))


@pytest.fixture
def case():
    torch.manual_seed(0)
    net, x = Branches().eval(), pictures(48, 21)
    with torch.no_grad():
        net.head.bias -= net(x).mean(0)
        net.head.weight *= (scale := 2 / net(x).std())  # logits that differ between images
        net.head.bias *= scale
        return net, x, net(x).argmax(1)


def probed(net, x, y, group, **options):
    result = eqbench.probe("ablation", net, x, y, group=group, **SMALL | options)
    assert result.status is Status.ok, result.reason
    return result


@pytest.mark.parametrize("labelled", [True, False])
def test_without_the_asymmetric_branch_the_output_is_symmetric(case, labelled):
    net, x, y = case
    labels = y if labelled else None
    before = eqbench.probe("orbit", net, x, labels, group="c4", layers=False).metrics
    share = before["symmetry_share" if labelled else "js_share"].value
    found = probed(net, x, labels, "c4", percent=20).metrics
    assert share > 0.02
    assert found["least_share_change"].value == pytest.approx(-share, abs=1e-6)
    assert found["least_share_change"].hi < 0
    assert abs(found["least_share_change"].null + share) > 0.1 * share  # random channels do not do it
    assert found["most_share_change"].value != pytest.approx(-share, rel=0.1)
    change = found["least_accuracy_change" if labelled else "least_agreement"]
    assert -1 <= change.value <= 1
    assert ("least_agreement" in found) != labelled


def test_a_wrong_ranking_is_noticed(case, monkeypatch):
    """Ranked by the correlation of each channel with itself, as if none changed places, turned filters look asymmetric."""
    net, x, y = case
    true = circuit_units.match_blocks
    monkeypatch.setattr(circuit_units, "match_blocks", lambda c, blocks: [torch.arange(len(m)) for m in c])
    found = probed(net, x, y, "c4", percent=20).metrics
    monkeypatch.setattr(circuit_units, "match_blocks", true)
    share = eqbench.probe("orbit", net, x, y, group="c4", layers=False).metrics["symmetry_share"].value
    assert abs(found["least_share_change"].value + share) > 0.2 * share


def test_the_channels_found_are_the_odd_ones(case):
    net, x, _ = case
    first, second = ablation.score(tensor_subject(net, x), get("c4"))  # and not the logits
    for layer, odd in ((first, net.odd[0]), (second, net.odd[1])):
        assert sorted(ablation.least(layer.score, 6).tolist()) == odd.tolist()
        assert not set(ablation.most(layer.score, 24).tolist()) & set(odd.tolist())
        assert layer.count(20) == 6


def test_constant_channels_are_not_chosen():
    score = torch.tensor([0.3, torch.nan, 0.1, 0.9])
    assert ablation.least(score, 3).tolist() == [2, 0, 3]
    assert ablation.most(score, 3).tolist() == [3, 0, 2]
    assert sorted(ablation.drawn(0)(score, 3).tolist()) == [0, 2, 3]
    assert ablation.Scored("a", 0.0, None, score).count(50) == 2
    assert ablation.Scored("a", 0.0, None, score).count(1) == 1


@pytest.mark.parametrize(("name", "size"), [("test_vit", 32), ("test_convnext", 64), ("test_efficientnet", 64)])
def test_channels_are_zeroed_where_they_are(name, size):
    """In every layout, tokens too; all channels of a branch of a residual network at once are the branch's absence."""
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=3, **({"img_size": size} if "vit" in name else {})).eval()
    x = pictures(16, size)
    layers = ablation.score(tensor_subject(net, x), get("hflip"))
    for layer in layers[:: max(1, len(layers) // 6)]:
        seen = []
        module = net.get_submodule(layer.port.module)
        with ablation.zeroed(net, [(layer.port, torch.tensor([1, 2]))]), torch.no_grad():
            handle = module.register_forward_hook(lambda m, a, y, seen=seen: seen.append(y))
            net(x)
            handle.remove()
        (y,) = seen
        channels = y.movedim(1 if y.ndim == 2 or "NC" in layer.port.layout.axes else -1, 0)
        assert (channels[1:3] == 0).all()
        assert (channels.flatten(1)[[0, 3]] != 0).any(1).all()
    with torch.no_grad():
        assert torch.equal(net(x), net(x))
    result = probed(net, x, None, "hflip", layer_images=8, layers=3)
    assert len(result.curves["by_layer"]) == 3
    for row in result.curves["by_layer"]:
        assert row["score"] == sorted(row["score"])
        assert {"share_change", "agreement"} == row["least"].keys() == row["most"].keys() == row["random"].keys()
    assert result.cost["forwards"] == 16 * 2 + 16 * 2 + (2 + 2) * 16 * 2 + 3 * 3 * 8 * 2


def test_intervals_are_paired():
    """A change that is the same for every image has no width, however much the images differ."""
    labels = torch.randint(3, (40,), generator=torch.Generator().manual_seed(0))
    orbit = [torch.randn(40, 3, generator=torch.Generator().manual_seed(i)).double() for i in (1, 2)]
    change = ablation.compare(orbit, orbit, labels)
    weights = np.random.RandomState(0).poisson(1, (50, 40)).astype(float)
    assert (change["share_change"](weights) == 0).all()
    assert (change["accuracy_change"](weights) == 0).all()
    after = [torch.nn.functional.one_hot(labels, 3).double() * 9 for _ in orbit]
    changed = ablation.compare(after, orbit, labels)
    assert changed["accuracy_change"](np.ones((1, 40)))[0] == pytest.approx(
        1 - float((orbit[0].argmax(1) == labels).double().mean())
    )
    assert changed["share_change"](np.ones((1, 40)))[0] < 0


def test_a_network_of_logits_alone_is_refused():
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    with pytest.raises(Unsupported, match="no layer but the logits"):
        ablation.score(tensor_subject(net, pictures(8, 9)), get("hflip"))
