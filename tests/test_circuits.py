"""Circuits against networks whose families and symmetric weights are known exactly; what is not there is not found."""

import math

import numpy as np
import pytest
import timm
import torch
from circuitry import Mirror, invariant, mirrored_vit, shuffled
from equivariant import p4, pictures
from torch import nn

import eqbench
from eqbench.errors import Unsupported
from eqbench.groups import get
from eqbench.probes import circuits
from eqbench.probes.circuitry import halves as circuit_halves
from eqbench.probes.circuitry import pictures as circuit_pictures
from eqbench.probes.circuitry import units as circuit_units
from eqbench.probes.circuitry import weights as circuit_weights
from eqbench.probes.circuitry.graph import fitting
from eqbench.probes.circuitry.numbers import Strand, census_strands, measures
from eqbench.probes.circuitry.trace import trace
from eqbench.probes.circuitry.units import Census, match_units
from eqbench.probes.notebook import tensor_subject
from eqbench.results import Status

SMALL = {"null_images": 64, "tuning_images": 0, "aligned_below": 0, "aligned_above": 0, "resamples": 200}
NETS = {"p4": (p4, "c4", 21), "mirror": (Mirror, "hflip", 17), "vit": (mirrored_vit, "hflip", 32)}


def probed(net, x, group, **options):
    result = eqbench.probe("circuits", net.eval(), x, group=group, **SMALL | options)
    assert result.status is Status.ok, result.reason
    return result


def values(result):
    return {name: measure.value for name, measure in result.metrics.items()}


def matched(net, x, group):
    """(graph, units of the first generator) of a network."""
    subject, group = tensor_subject(net.eval(), x, batch=16), get(group)
    halves = circuit_halves.split(subject, subject.size)
    graph = fitting(trace(net, x[:2]), group, subject.size)
    return graph, match_units(net, graph, halves, group, group.generators()[0])


@pytest.fixture(params=NETS)
def exact(request):
    make, group, size = NETS[request.param]
    torch.manual_seed(0)
    net, x = make().eval(), pictures(64, size)
    assert invariant(net, x, group)
    return net, x, group


# --- exact symmetry ---------------------------------------------------------------------------------------------------


def test_exact_symmetry_is_found_exactly(exact):
    """Depthwise, grouped and residual layers, gates, batch norms of either sign, heads in bases of their own."""
    result = probed(*exact)
    for layer in result.layers:
        assert layer.coverage == 1, layer.reason
        assert layer.metrics["weight_symmetry"].value == pytest.approx(1, abs=1e-5), layer.name
        assert layer.metrics["regular_symmetry"].value == pytest.approx(1, abs=1e-5), layer.name
    kind = "orbit4" if exact[2] == "c4" else "pair"
    *hidden, logits = result.curves["census"]
    assert all(layer[kind] == 1 for layer in hidden)
    assert logits["fixed"] == 1
    assert result.metrics["group_law"].value == 1
    assert result.metrics["weight_symmetry"].lo > 0.99
    assert abs(result.metrics["weight_symmetry"].null) < 0.05
    assert result.metrics["weight_gap"].lo > 0.5


def test_the_permutation_is_the_one_built_in():
    torch.manual_seed(0)
    graph, units = matched(p4(6), pictures(64, 21), "c4")
    first, second, head = graph.weights
    taken = torch.arange(24).roll(-6)  # a quarter turn takes (r, i) to (r + 1, i)
    assert units.pi[first.writes].equal(taken)
    assert units.pi[second.writes].equal(taken)
    assert units.pi[head.writes].equal(torch.arange(5))
    assert first.writes is second.reads
    assert units.held[first.target].min() > 0.999


@pytest.mark.parametrize("wrong", ["kernels", "channels", "inputs"])
def test_a_wrong_action_on_weights_is_noticed(monkeypatch, wrong):
    """Kernels turned the other way; channels exchanged the other way; outputs exchanged and inputs not."""
    torch.manual_seed(0)
    net, x, group = p4().eval(), pictures(64, 21), get("c4")
    if wrong == "kernels":
        turn = type(group).act_kernels
        monkeypatch.setattr(type(group), "act_kernels", lambda self, w, g: turn(self, w, self.inverse(g)))
    else:

        def mistaken(*args, **kwargs):
            units = match_units(*args, **kwargs)
            for one in args[1].weights:
                pi = units.pi[one.reads]
                units.pi[one.reads] = pi.argsort() if wrong == "channels" else torch.arange(len(pi))
            return units

        monkeypatch.setattr(circuits, "match_units", mistaken)
    assert values(probed(net, x, "c4"))["weight_symmetry"] < 0.8


def test_heads_are_compared_by_what_they_compute(monkeypatch):
    """In the bases that heads happen to have, the same symmetric weights look alike no more."""
    torch.manual_seed(0)
    net, x = mirrored_vit().eval(), pictures(64, 32)
    graph, units = matched(net, x, "hflip")
    for heads in graph.heads:
        assert units.heads[heads].tolist() == [1, 0]
        weight = net.get_submodule(heads.qkv.name).weight.detach()
        rows = weight.unflatten(0, (3, 2, -1))[:, units.heads[heads]].flatten(0, 2)[:, units.pi[heads.qkv.reads]]
        assert nn.functional.cosine_similarity(weight.flatten(), rows.flatten(), 0) < 0.5
        own = circuit_weights.head_products(weight, net.get_submodule(heads.proj.name).weight.detach(), heads, units)
        for products in own:
            cosine = circuit_weights.cosine([products.moved], np.ones((1, 2)))
            assert cosine == pytest.approx(1, abs=1e-6)


# --- what changes nothing, and what leaves nothing --------------------------------------------------------------------


def test_the_order_of_hidden_channels_does_not_matter():
    torch.manual_seed(0)
    net, x = p4().eval(), pictures(64, 21)
    with torch.no_grad():
        net[0].weight += 0.05 * torch.randn(net[0].weight.shape)  # not exact, so that there is something to change
        net[2].weight += 0.05 * torch.randn(net[2].weight.shape)
        before, logits = values(probed(net, x, "c4")), net(x)
        after = values(probed(shuffled(net), x, "c4"))
        assert (net(x) - logits).abs().max() < 1e-5
    assert 0.2 < before["regular_symmetry"] < 0.95
    assert after == pytest.approx(before, abs=1e-3)


def test_shuffled_weights_are_like_chance():
    torch.manual_seed(0)
    net, x = p4().eval(), pictures(64, 21)
    with torch.no_grad():
        for layer in (net[0], net[2], net[6]):
            layer.weight.copy_(layer.weight.flatten()[torch.randperm(layer.weight.numel())].view_as(layer.weight))
    found = probed(net, x, "c4").metrics
    assert abs(found["weight_symmetry"].value) < 0.05
    assert found["family_share"].value < 0.1
    assert found["regular_symmetry"].value < 0.2


def test_pairs_of_unrelated_images_are_like_chance(monkeypatch):
    """What matches the units are the pairs: with another image's f(gx) nothing is left of an exact symmetry."""
    torch.manual_seed(0)
    true = circuit_units.pair
    monkeypatch.setattr(circuit_units, "pair", lambda *args: (true(*args)[0], true(*args)[1].roll(1, 0)))
    found = probed(p4().eval(), pictures(64, 21), "c4").metrics
    assert abs(found["weight_symmetry"].value) < 0.1


# --- streams of channels ----------------------------------------------------------------------------------------------


class Parts(nn.Module):
    """One of everything that does, or does not, hand channels on."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.norm, self.c = nn.LayerNorm(8), nn.Linear(8, 8)
        self.d, self.e, self.f = nn.Conv2d(16, 8, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1)
        self.twice, self.unused = nn.Conv2d(8, 8, 1), nn.Linear(3, 3)
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.a(x)
        x = x + self.b(x).relu_()
        x = x + self.c(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        x = self.d(torch.cat([x, self.f(x)], 1))
        x = self.e(x[:, :4] * x[:, 4:])
        x = self.twice(self.twice(x))
        z = x.permute(0, 2, 3, 1).flatten(1, 2)
        z = self.out((self.q(z) @ self.k(z).mT).softmax(-1) @ self.v(z))
        return self.head(z.mean(1))


def test_streams_are_found_by_where_gradients_stay():
    torch.manual_seed(0)
    graph = trace(Parts(), pictures(2, 9))
    one = {weight.name: weight for weight in graph.weights}
    assert one["a"].reads.image
    assert one["a"].writes is one["b"].reads is one["b"].writes is one["c"].reads is one["c"].writes
    assert one["a"].writes is one["f"].reads  # one stream
    assert one["d"].reads.channels == 16  # a concatenation is another set of channels
    assert one["d"].reads is not one["a"].writes
    assert one["e"].reads is not one["d"].writes
    assert one["v"].writes is one["out"].reads  # attention hands values on ...
    assert one["q"].writes is not one["out"].reads  # ... and mixes queries
    assert one["q"].writes is not one["k"].writes
    assert one["head"].writes.logits
    assert graph.refused == {"twice": "is called 2 times a pass", "unused": "is not called as a module"}


def test_ties_need_the_masked_gradient(monkeypatch):
    """If it were enough that any gradient arrives, queries would count as values."""
    monkeypatch.setattr("eqbench.probes.circuitry.trace.LOCAL", -1.0)
    one = {weight.name: weight for weight in trace(Parts(), pictures(2, 9)).weights}
    assert one["q"].writes is one["out"].reads


def test_streams_of_timm_networks():
    """One permutation a stage; a convnext's depthwise layers are on the stream; a gate is on what it gates."""
    net = timm.create_model("test_convnext", num_classes=3).eval()
    one = {w.name: w for w in trace(net, pictures(2, 64)).weights}
    assert one["stem.0"].writes is one["stages.0.blocks.0.conv_dw"].writes is one["stages.1.downsample.1"].reads
    assert one["stages.0.blocks.0.mlp.fc1"].writes is one["stages.0.blocks.0.mlp.fc2"].reads
    net = timm.create_model("test_efficientnet", num_classes=3).eval()
    one = {w.name: w for w in trace(net, pictures(2, 64)).weights}
    assert (
        one["blocks.3.0.conv_dw"].reads is one["blocks.3.0.conv_dw"].writes is one["blocks.3.0.se.conv_expand"].writes
    )
    assert one["blocks.3.0.conv_dw"].target.module == "blocks.3.0.bn2"
    net = timm.create_model("test_vit", num_classes=3, img_size=64).eval()
    graph = trace(net, pictures(2, 64))
    assert [heads.name for heads in graph.heads] == [f"blocks.{i}.attn" for i in range(6)]
    assert len({heads.proj.writes for heads in graph.heads} | {graph.weights[0].writes}) == 1


def test_blocks_of_channels_stay_whole():
    torch.manual_seed(0)
    graph, units = matched(Mirror().eval(), pictures(64, 17), "hflip")
    (grouped,) = (one for one in graph.weights if one.name == "grouped")
    for space in (grouped.reads, grouped.writes):
        blocks = units.pi[space].view(4, -1) // 8
        assert (blocks == blocks[:, :1]).all()
        assert blocks[:, 0].tolist() == [2, 3, 0, 1]
    free = circuit_units.match_blocks([torch.rand(32, 32)], 1)[0].view(4, -1) // 8
    assert not (free == free[:, :1]).all()


def test_weights_are_those_that_images_meet():
    """Batch norm folded in; a standardised weight standardised; taps that see only padding are 0."""
    torch.manual_seed(0)
    net = Mirror().eval()
    graph = trace(net, pictures(2, 17))
    weights = circuit_weights.applied_weights(net, graph, pictures(2, 17))
    (stem,) = (one for one in graph.weights if one.name == "stem")
    scale = net.bn.weight / (net.bn.running_var + net.bn.eps).sqrt()
    assert torch.allclose(weights[stem], net.stem.weight * scale[:, None, None, None])
    net = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 7, padding=3), nn.Flatten(), nn.Linear(16, 2)).eval()
    graph = trace(net, pictures(2, 8))
    weights = circuit_weights.applied_weights(net, graph, pictures(2, 8))
    assert (weights[graph.weights[1]] != 0).sum() == 16 * 9  # maps of 2 x 2 see the inner 3 x 3 of 7 x 7 taps
    net = timm.create_model("test_nfnet", num_classes=3).eval()
    graph = trace(net, pictures(2, 32))
    weights = circuit_weights.applied_weights(net, graph, pictures(2, 32))
    assert weights[graph.weights[0]].mean((1, 2, 3)).abs().max() < 1e-6
    assert net.stem.conv1.weight.mean((1, 2, 3)).abs().max() > 1e-2


# --- formulas ---------------------------------------------------------------------------------------------------------


def test_distills_formula_by_hand():
    """Two families of 4 and one pair of 12 units: r = 10/12, K = 10/3; inputs r = 1/2; logits in no family."""
    size = np.array([4] * 8 + [2, 2] + [1, 0])
    census = Census(np.array([0] * 4 + [1] * 4 + [2, 2, 3, 4]), size, np.ones(12, bool))
    before = Census(np.arange(4), np.array([2, 2, 1, 0]), np.ones(4, bool))
    strand = census_strands(census, before, 100, 4)["redundancy"]
    assert strand.value == pytest.approx(10 / 12 * 1 / 2 * (10 / 3 - 1) / (10 / 3))
    assert strand.value != pytest.approx((10 / 12) ** 2 * (10 / 3 - 1) / (10 / 3))
    none = census_strands(Census(np.arange(3), np.ones(3, int), np.ones(3, bool)), census, 300, 4)["redundancy"]
    both, _ = measures({"a": strand, "b": none}, {"a": strand, "b": none}, 8, 100)
    assert both.value == pytest.approx(strand.value * 100 / 400)
    image = census_strands(census, None, 100, 4)["redundancy"]
    assert image.value == 0


def test_the_census_needs_every_member_of_a_family():
    torch.manual_seed(0)
    graph, units = matched(p4(6), pictures(64, 21), "c4")
    first = graph.weights[0]
    units.thresholds = dict.fromkeys(units.held, 0.5)
    census = circuit_units.take_census(get("c4"), [units], first.writes, first.target)
    assert census.size.tolist() == [4] * 24
    units.held[first.target][7] = 0.4
    census = circuit_units.take_census(get("c4"), [units], first.writes, first.target)
    assert [i for i in range(24) if census.size[i] == 0] == [1, 7, 13, 19]


def test_the_law_of_d4():
    """pi of a turn and of a mirror on the regular representation obey it; a mirror that commutes with turns does not."""
    group = get("d4")
    elements = list(group.elements())
    regular = [np.array([elements.index(group.multiply(g, h)) for h in elements]) for g in group.generators()]
    assert circuit_units.lawful(group, regular).all()
    commuting = [np.array([1, 2, 3, 0, 5, 6, 7, 4]), np.array([4, 5, 6, 7, 0, 1, 2, 3])]
    assert not circuit_units.lawful(group, commuting).any()


def test_intervals_cover_the_mean_of_units():
    """Of a mean over 40 independent units the 95 % interval has the standard error's width; families count once."""
    x = np.random.RandomState(0).randn(40)
    alone = Strand(lambda w: (w @ x) / w.sum(1), np.arange(40))
    network, _ = measures({"a": alone}, {"a": alone}, 8, 2000)
    assert (network.hi - network.lo) / (2 * 1.96 * x.std() / math.sqrt(40)) == pytest.approx(1, abs=0.1)
    copied = Strand(lambda w: (w @ np.repeat(x, 4)) / w.sum(1), np.repeat(np.arange(40), 4))
    fourfold, _ = measures({"a": copied}, {"a": copied}, 8, 2000)
    assert (fourfold.hi - fourfold.lo) == pytest.approx(network.hi - network.lo, rel=1e-6)
    naive = Strand(copied.statistic, np.arange(160))
    assert np.ptp(_ends(naive)) < 0.7 * np.ptp(_ends(copied))


def _ends(strand):
    network, _ = measures({"a": strand}, {"a": strand}, 8, 2000)
    return network.lo, network.hi


# --- hue and rotation, pictures ---------------------------------------------------------------------------------------


def test_colour_contrast_is_twisted_and_luminance_edges_are_not():
    edge = torch.tensor([1.0, 0.0, -1.0])[None, None, :].expand(1, 3, 3) / 3
    contrast = torch.cat([edge, -edge, 0 * edge])  # red on the left, green on the right
    blob = torch.tensor([1.0, -0.5, -0.5])[:, None, None].expand(3, 3, 3) / 9
    net = nn.Sequential(nn.Conv2d(3, 3, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    net[0].weight.data = torch.stack([contrast, edge.expand(3, 3, 3), blob])
    noise = torch.rand(64, 3, 15, 15, generator=torch.Generator().manual_seed(0))
    (first, *_) = trace(net, noise[:2]).weights
    twist = circuit_pictures.twist(net, first, [noise])
    assert twist[0] == pytest.approx(2, abs=0.1)
    assert twist[1] == pytest.approx(-2, abs=0.1)
    assert twist[2] == pytest.approx(-2, abs=0.1)
    assert circuit_pictures.twist(net, first, [noise.mean(1, keepdim=True).expand(-1, 3, -1, -1)]) is None


def test_pictures_of_families():
    torch.manual_seed(0)
    net, x = p4().eval(), pictures(32, 21)
    result = probed(net, x, "c4", tuning_images=4)
    for family in result.curves["filters"]:
        assert family["layer"] == "0"
        assert family["matched"]
        kernels = torch.tensor(family["kernels"])
        assert kernels.shape == (4, 3, 5, 5)
        for k in range(4):
            assert torch.allclose(kernels[k], kernels[0].rot90(k, (-2, -1)), atol=1e-3)
    assert len(result.curves["filters"]) == 6
    for family in result.curves["tuning"]:
        responses = np.array(family["responses"])
        assert responses.shape == (4, 24)
        assert responses[0].argmax() == 0
        for k in range(1, 4):  # sibling k, turned by k quarters, says at an angle what the unit says k quarters before
            assert np.abs(responses[k] - np.roll(responses[0], 6 * k)).max() < 0.1
    assert {family["layer"] for family in result.curves["tuning"]} == {"0", "2"}


def test_tuning_of_mirrored_siblings_turns_the_other_way():
    """A unit that prefers 0 and says less clockwise than counter-clockwise, and its mirror image."""
    angles = np.arange(24) * 15
    unit = np.where(angles < 180, np.exp(-angles / 60), np.exp(-(360 - angles) / 20))
    both = torch.tensor(np.stack([unit, np.roll(unit[::-1], 1)], 1))[None].repeat(2, 1, 1)
    family = {"layer": "a", "members": [0, 1]}
    (right,) = circuit_pictures.tuning([family], both, True)
    (wrong,) = circuit_pictures.tuning([family], both, False)
    z = np.array(right["responses"])
    assert np.allclose(z[1], np.roll(z[0][::-1], 1), atol=2e-4)
    assert np.ptp(z[0]) > np.ptp(np.array(wrong["responses"])[0]) - 1e-6
    assert z[0][1] > z[0][-1] + 0.1
    assert abs(np.array(wrong["responses"])[0][1] - np.array(wrong["responses"])[0][-1]) < 1e-6


# --- as a probe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet", "test_vit"])
def test_timm_networks(name):
    size = {"img_size": 32} if "vit" in name else {}
    net = timm.create_model(name, num_classes=4, **size)
    result = probed(net, pictures(16, 32), "hflip", null_images=16, resamples=100)
    assert all(layer.coverage == 1 for layer in result.layers)
    assert {"weight_symmetry", "regular_symmetry", "weight_gap", "family_share", "redundancy"} <= result.metrics.keys()
    for layer in result.curves["census"]:
        assert sum(layer[kind] for kind in ("fixed", "pair", "orbit4", "other", "unmatched")) == pytest.approx(
            1, abs=1e-3
        )
    assert result.cost["forwards"] == 16 * 2 * 2  # of the group's generator and of its placebo's


def test_colours_are_exchanged_in_the_first_kernel():
    """Filters that cycle RGB as the group does are one family; the middle layer's kernels stay as they are."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 9, 3),
        nn.ReLU(),
        nn.Conv2d(9, 9, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(9, 4),
    )
    with torch.no_grad():
        part = net[0].weight[:3]
        net[0].weight.copy_(torch.cat([part.roll(k, 1) for k in range(3)]))
        part = net[2].weight[:3]
        net[2].weight.copy_(torch.cat([part.roll(3 * k, 1) for k in range(3)]))
        net[6].weight.copy_(net[6].weight[:, :3].repeat(1, 3))
        for layer in (net[0], net[2]):
            layer.bias.zero_()
    x = torch.rand(64, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    assert invariant(net, x, "rgb_cycle")
    result = probed(net, x, "rgb_cycle")
    assert result.metrics["weight_symmetry"].value == pytest.approx(1, abs=1e-5)
    assert result.curves["census"][0]["other"] == result.curves["census"][1]["other"] == 1  # families of three
    wrong = eqbench.probe(
        "circuits", net, x, group="rgb_cycle", mean=[0.5] * 3, std=[0.2, 0.3, 0.4], **SMALL
    )  # the network is not symmetric in other units of colour
    assert wrong.metrics["weight_symmetry"].value < 0.99


def test_a_placebo_that_moves_kernels_alike_is_none():
    torch.manual_seed(0)
    gap = probed(p4().eval(), pictures(16, 21), "d4", null_images=16).metrics["weight_gap"]
    assert gap.value is None
    assert gap.reason == "d4_shifted moves kernels as d4 does, so it is no placebo of weights"


def test_images_that_do_not_fit_in_memory_are_decoded_again(monkeypatch):
    torch.manual_seed(0)
    net, x = p4().eval(), pictures(32, 21)
    kept = probed(net, x, "c4", null_images=16)
    monkeypatch.setattr(circuit_halves, "IN_MEMORY", 0)
    assert isinstance(circuit_halves.split(tensor_subject(net, x), 21)[0], circuit_halves.Half)
    assert probed(net, x, "c4", null_images=16).metrics == kept.metrics


def test_what_is_not_finite_fails():
    torch.manual_seed(0)
    net = p4()
    net[2].weight.data[3] = torch.nan
    result = eqbench.probe("circuits", net, pictures(16, 21), group="c4", **SMALL)
    assert result.status is Status.failed
    assert result.reason == "layer 2: activations that are not finite"


def test_what_cannot_be_matched_is_refused_with_a_reason():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(4, 3))

        def forward(self, x):
            return x.mean((2, 3)) @ self.weight.T

    result = eqbench.probe("circuits", Bare(), pictures(16, 9), group="hflip", **SMALL)
    assert result.status is Status.skipped
    assert result.reason == "Bare: no convolution or linear layer can be read (it has none)"
    subject = tensor_subject(p4(), pictures(8, 21))
    subject.clusters = np.zeros(8, np.int64)
    with pytest.raises(Unsupported, match="are one cluster"):
        circuit_halves.split(subject, 21)
    net = nn.Sequential(nn.Conv2d(3, 4, (1, 3), padding=(0, 1)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    layers = {layer.name: layer for layer in probed(net, pictures(16, 9), "hflip", null_images=16).layers}
    assert layers["0"].metrics["weight_symmetry"].value is not None  # 1 x 3 taps can be mirrored
