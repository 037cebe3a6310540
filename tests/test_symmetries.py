"""Parameter symmetries: found by data flow, confirmed on the logits, obeyed by gradient and Hessian; what is wrong is caught."""

import copy
from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

import eqbench
from eqbench.curvature.hessian import Hessian
from eqbench.curvature.objective import Objective
from eqbench.errors import Failed
from eqbench.metrics.symmetries import BUT_FOR_EPS
from eqbench.probes import symmetries as probe
from eqbench.symmetries import affine, attention, balance, dataflow, rescalings, scales, shifts
from eqbench.symmetries.balancing import confirmed, imbalance
from eqbench.symmetries.certificate import Point, worst
from eqbench.symmetries.families import control, propose
from eqbench.symmetries.temperature import head_residual
from eqbench.symmetries.transformations import beside, change, compose, confirm, generator

# Real architectures with random weights, few channels or blocks, and small images: (name, arguments, size).
MODELS = {
    "vit": ("vit_tiny_patch16_224", {"depth": 2, "img_size": 48}, 48),
    "deit": ("deit_tiny_distilled_patch16_224", {"depth": 2, "img_size": 48}, 48),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"depths": (1, 2), "embed_dim": 24, "num_heads": (1, 2), "img_size": 56},
        56,
    ),
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}, 64),
    "resnet": ("resnet18", {"channels": (8, 16, 24, 32)}, 65),
    "vgg": ("vgg11", {}, 32),
    "regnet": ("regnetx_002", {}, 33),
    "efficientnet": ("efficientnet_b0", {}, 33),
}
FOUND = {
    "vit": {"S1", "S2", "S3", "S4", "S5", "S6", "S7", "S11"},
    "deit": {"S1", "S2", "S3", "S4", "S5", "S6", "S7", "S11"},
    "swin": {"S1", "S2", "S3", "S4", "S5", "S6", "S7", "S11", "S12"},
    "convnext": {"S1", "S3", "S4", "S5", "S12", "S13"},
    "resnet": {"S1", "S8", "S10"},
    "vgg": {"S1", "S8"},
    "regnet": {"S1", "S8", "S10"},
    "efficientnet": {"S1", "S4", "S10"},
}


def build(name, *, batch_statistics=False, images=4):
    """An objective in float64 with weights in general position, so that nothing is zero by initialisation."""
    torch.manual_seed(0)
    architecture, arguments, size = MODELS[name]
    module = small_vgg() if name == "vgg" else timm.create_model(architecture, num_classes=5, **arguments)
    x = torch.rand(images, 3, size, size)
    return beside(Objective(module, [(x, torch.arange(images) % 5)], batch_statistics=batch_statistics))


def small_vgg():
    """A VGG of few channels, with bias and without batch norm, and without the layers of 4096 channels."""
    module = timm.models.vgg.VGG([8, "M", 16, "M", 24, 24, "M", 32, "M"], num_classes=5)
    return nn.Sequential(module.features, nn.Flatten(), nn.Linear(32 * 4, 5))


def found_in(objective):
    flow = dataflow.trace(objective.module, objective.batches[0][0])
    return flow, propose(objective.module, flow)


@pytest.mark.parametrize("name", MODELS)
def test_every_family_holds_to_rounding(name):
    """Table: which families there are, with residuals at the floor of float64; the control's are not."""
    objective = build(name)
    flow, proposed = found_in(objective)
    rows = probe._confirm(objective, proposed)
    assert {row.family for row in rows if row.confirmed} == FOUND[name]
    assert not any(row.refuted for row in rows)
    exact, tiny = Point(objective), Point(objective.without_eps())
    for row in rows:
        along = (tiny if row.family in BUT_FOR_EPS else exact).along(row.confirmed)
        assert along.r1 < 1e-14, row.family
        assert along.r2 < 1e-13, row.family
        assert along.curvature == pytest.approx(
            float(along.k @ along.forced) / float(along.k @ along.k), abs=1e-12 * exact.scale
        )
    assert exact.along(control(flow, proposed)).r2 > 1e-4
    assert head_residual(exact.hessian, exact.gradient, shifts.heads(flow)) < 1e-13


def test_known_null_space_of_a_vit():
    """Fan-in + 1 a writer, one a token of an added parameter, all key biases; dense Hessians have at least that many zeros."""
    objective = build("vit")
    proposed = found_in(objective)[1]
    null = {family: sum(one.null for one in proposed if one.family == family) for family in ("S1", "S2", "S3")}
    d, tokens = 192, 10
    assert null["S1"] == d + 1
    assert null["S2"] == 2 * d
    assert null["S3"] == (3 * 16 * 16 + 1) + 2 * (d + 1) + 2 * (4 * d + 1) + tokens + 1


def test_the_null_dimension_is_that_of_a_dense_hessian():
    """No more and no fewer zero eigenvalues than S1 and S3 count, in general position."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.5 * torch.randn_like(p))
    objective = Objective(net, [(torch.randn(60, 3, 2, 2).double(), torch.arange(60) % 3)])
    proposed = found_in(objective)[1]
    hessian = Hessian(objective)
    matrix = torch.stack([hessian @ e for e in torch.eye(objective.size, dtype=torch.float64)])
    values = torch.linalg.eigvalsh(matrix).abs()
    assert int((values < 1e-12 * values.max()).sum()) == sum(one.null for one in proposed) == 13 + 7


def test_scale_families_hold_but_for_eps():
    """With the networks' own eps the residuals of S11 and S12 are small, not zero; S9 obeys its identity with eps."""
    for name, family in (("vit", "S11"), ("convnext", "S12")):
        objective = build(name)
        some = [one for one in found_in(objective)[1] if one.family == family]
        assert 1e-9 < Point(objective).along(some).r2 < 1e-2
    objective = build("resnet", batch_statistics=True)
    first = objective.module.conv1.weight
    for layer in objective.module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 1e-2
    x, y = objective.batches[0]
    norm = objective.module.bn1
    variance = nn.functional.conv2d(x, first, stride=2, padding=3).var((0, 2, 3), correction=0)
    loss = objective.loss(objective.logits(x), y)
    g_weight, g_gamma = torch.autograd.grad(loss, [first, norm.weight])
    left = (first * g_weight).sum((1, 2, 3))
    assert torch.allclose(left, norm.eps / (variance + norm.eps) * norm.weight * g_gamma, rtol=1e-8)


@pytest.mark.parametrize("name", ["vit", "swin", "convnext", "vgg", "resnet"])
def test_directions_are_derivatives_of_their_curves(name):
    """Also linear in the coefficients, and with `unit` symmetric: u'A v = v'A u, so that there is a charge."""
    objective = build(name, batch_statistics=True)
    _, proposed = found_in(objective)
    theta = objective.named(objective.theta)
    u, v = ({n: torch.randn_like(w) for n, w in theta.items()} for _ in range(2))
    found = [one for one in proposed if one.origin is not None]
    assert found
    for one in found:
        k, expected = one.origin.direction(theta, one.c), generator(one.curve, theta, theta)[0]
        zero = torch.zeros(())
        for n in {*k, *expected}:
            assert (k.get(n, zero) - expected.get(n, zero)).norm() <= 1e-12 * theta[n].norm(), (one.family, n)
        twice = one.origin.direction(theta, 2 * one.c)
        assert all(torch.allclose(twice[n], 2 * k[n]) for n in k)
        pairings = [
            sum(float((w * there[n]).sum()) for n, w in one.origin.direction(here, one.origin.unit).items())
            for here, there in ((u, v), (v, u))
        ]
        assert pairings[0] == pytest.approx(pairings[1], rel=1e-9), one.family


def test_batch_statistics_flip_s9_and_s10():
    for training in (False, True):
        objective = build("resnet", batch_statistics=training)
        if training:
            objective = objective.without_eps()
        flow = dataflow.trace(objective.module, objective.batches[0][0])
        ours, evaluated = build("resnet"), dict(build("resnet").module.named_buffers())
        source = torch.Generator().manual_seed(0)
        gauges = list(affine.batch_norm_gauge(dataflow.trace(ours.module, ours.batches[0][0]), evaluated, source))
        scaled = list(affine.batch_norm_scales(flow, source))
        holds, broken = (scaled, gauges) if training else (gauges, scaled)
        point = Point(objective)
        assert change(objective, holds) < 1e-9
        assert change(objective, broken) > 1e-2
        assert point.along(holds).r2 < 1e-10
        assert point.along(broken).r2 > 1e-2
        family = {one.family for one in propose(objective.module, flow)}
        assert ("S9" in family, "S10" in family) == (training, not training)


def test_what_the_architecture_breaks_is_refuted():
    """Rotary positions break the bases of queries and keys; an RMS norm does not take a shift out."""
    torch.manual_seed(0)
    module = timm.create_model("eva02_tiny_patch14_224", depth=1, img_size=56, num_classes=5)
    objective = beside(Objective(module, [(torch.rand(2, 3, 56, 56), torch.tensor([0, 1]))]))
    verdict = confirm(objective, found_in(objective)[1])
    assert "S6" in {one.family for one, _ in verdict.refuted}
    assert "S6" not in {one.family for one in verdict.confirmed}
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.RMSNorm(6), nn.Linear(6, 3)).double()
    objective = Objective(net, [(torch.rand(4, 3, 2, 2).double(), torch.arange(4) % 3)])
    verdict = confirm(objective, found_in(objective)[1])
    assert {one.family for one, _ in verdict.refuted} == {"S3"}
    assert {one.family for one in verdict.confirmed} == {"S1", "S4", "S12"}


def test_mutations_are_caught():
    """A wrong sign, a wrong channel, a missing bias: the finite step refutes them, and the second-order residual exceeds its gate."""
    objective = build("resnet")
    flow = found_in(objective)[0]
    source = torch.Generator().manual_seed(0)
    one = next(one for one in rescalings.find(flow) if one.name == "layer1.0.bn1")
    a = 0.5 * torch.randn(len(one.classes), generator=source, dtype=torch.float64)
    right = one.curve(a)
    writer, reader = one.layers if one.layers[0].reads is None else one.layers[::-1]
    assert reader.reads is not None
    shifted = one.classes[torch.arange(len(one.classes)).roll(1)]
    lookup = torch.zeros(one.size, dtype=torch.long)
    lookup[one.classes] = shifted
    without = replace(writer, node=replace(writer.node, bias=None))

    def opposite(theta, t):
        back = replace(one, layers=[reader]).curve(-a).curve(theta, t)
        return replace(one, layers=[writer]).curve(a).curve(theta, t) | back

    wrong = {
        "sign": replace_curve(right, opposite),
        "channel": replace(one, layers=[writer, replace(reader, reads=lookup[reader.reads])]).curve(a),
        "bias": replace(one, layers=[without, reader]).curve(a),
    }
    point = Point(objective)
    assert change(objective, [right]) < 1e-12
    assert point.along([right]).r2 < probe.GATE
    for name, mutant in wrong.items():
        assert change(objective, [mutant]) > 1e-6, name
        assert point.along([mutant]).r2 > 1e-4, name
    good = [rescalings.random(other, source) for other in rescalings.find(flow) if other is not one]
    instance, along = worst(point, [*good, wrong["bias"]])
    assert instance is wrong["bias"]
    assert along.r2 > probe.GATE


def replace_curve(symmetry, curve):
    mutant = copy.copy(symmetry)
    mutant.curve = curve
    return mutant


def test_a_residual_above_its_gate_fails_the_cell(monkeypatch):
    """A Hessian that is wrong by one part in a million fails, naming family and place; so does a control that passes."""
    torch.manual_seed(0)
    net = timm.create_model("test_vit", img_size=32, num_classes=5)
    images = torch.rand(8, 3, 32, 32)
    right = Hessian.__matmul__
    monkeypatch.setattr(probe, "guard", lambda *_: None)
    monkeypatch.setattr(
        Hessian, "__matmul__", lambda self, v: right(self, v) * (1 + 1e-6 * torch.arange(len(v)) / len(v))
    )
    result = eqbench.probe("symmetries", net, images)
    assert result.status == "failed"
    assert result.reason.startswith("symmetry S4 (norm to linear gauge) leaves the logits alone")
    assert "worst at '" in result.reason
    monkeypatch.setattr(Hessian, "__matmul__", right)
    monkeypatch.setattr(probe, "control", lambda flow, proposed: [one for one in proposed if one.family == "S4"])
    result = eqbench.probe("symmetries", net, images)
    assert result.status == "ok", "a control that is a symmetry is none"
    assert result.metrics["symmetry_residual"].null is None
    monkeypatch.setattr(probe, "change", lambda *_: 1.0)
    result = eqbench.probe("symmetries", net, images)
    assert (result.status, "the control at" in result.reason) == ("failed", True)


@pytest.mark.parametrize("bend", [nn.PReLU(), nn.ReLU6()])
def test_positively_homogeneous_activations_are_no_controls(bend):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), bend, nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    result = eqbench.probe("symmetries", net, torch.rand(8, 3, 9, 9))
    assert result.status == "ok", result.reason
    found = {row["family"]: row["confirmed"] for row in result.curves["families"]}
    assert found["S8"] == (2 if isinstance(bend, nn.PReLU) else 1)


def test_frozen_weights_have_no_symmetries():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    net[0].requires_grad_(False)
    result = eqbench.probe("symmetries", net, torch.rand(8, 3, 9, 9))
    assert result.status == "ok", result.reason
    assert [row["family"] for row in result.curves["families"] if row["confirmed"]] == ["S1"]
    net[4].requires_grad_(False)
    net[0].requires_grad_(True)
    result = eqbench.probe("symmetries", net, torch.rand(8, 3, 9, 9))
    assert result.status == "ok", result.reason
    assert "requires no gradient" in result.metrics["head_residual"].reason


def test_the_probe_reports_its_numbers():
    torch.manual_seed(0)
    net = timm.create_model("test_vit", img_size=32, num_classes=5)
    result = eqbench.probe("symmetries", net, torch.rand(8, 3, 32, 32))
    assert result.status == "ok", result.reason
    value = {name: one.value for name, one in result.metrics.items()}
    assert value["symmetry_families"] == 8
    assert value["symmetry_residual"] < 1e-13 < 1e-3 < result.metrics["symmetry_residual"].null
    assert value["symmetry_residual_single"] < probe.GATE_SINGLE
    assert value["certified_lambda_min"] < 0 < value["certified_lambda_max"]
    assert value["null_share"] == value["null_dimension"] / sum(p.numel() for p in net.parameters())
    assert 0 < value["balance_residual"] < 1
    assert max(value["head_residual"], value["permutation_residual"]) < 1e-13
    assert [row["family"] for row in result.curves["families"]] == [
        "S1",
        "S2",
        "S3",
        "S4",
        "S5",
        "S6",
        "S7",
        "S11",
        "C0",
    ]


def test_bounds_hold_for_the_dense_spectrum():
    """lambda_min <= lo < 0 < hi <= lambda_max; with a scale symmetry they are h/2 -+ sqrt(h^2/4 + r^2)."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.LayerNorm(6, eps=1e-30), nn.GELU(), nn.Linear(6, 3)).double()
    objective = Objective(net, [(torch.rand(9, 3, 2, 2).double(), torch.arange(9) % 3)])
    (one,) = [one for one in found_in(objective)[1] if one.family == "S12"]
    point = Point(objective)
    along = point.along([one])
    lo, hi = point.bounds(along)
    matrix = torch.stack([point.hessian @ e for e in torch.eye(objective.size, dtype=torch.float64)])
    values = torch.linalg.eigvalsh(matrix)
    assert values[0] <= lo < 0 < hi <= values[-1]
    g = along.forced / along.forced.norm()
    h, r = float(g @ (point.hessian @ g)), float(along.forced.norm() / along.k.norm())
    assert (lo, hi) == pytest.approx((h / 2 - (h * h / 4 + r * r) ** 0.5, h / 2 + (h * h / 4 + r * r) ** 0.5), rel=1e-9)


@pytest.mark.parametrize("name", ["vit", "swin", "resnet", "vgg", "convnext"])
def test_regauged_copies_balance_to_the_same_weights(name):
    """Scales in [1/8, 8], and random bases inside heads, change the norm of the weights and are undone by balancing."""
    objective = build(name)
    module, x = objective.module, objective.batches[0][0]
    channels, heads = confirmed(module, x)
    source = torch.Generator().manual_seed(3)
    moves = [
        one.curve((2 * torch.rand(len(one.classes), generator=source).double() - 1) * torch.tensor(8.0).log())
        for one in channels
    ]
    moves += [one.random(source) for one in heads]
    other = copy.deepcopy(module)
    theta = {n: p.detach() for n, p in other.named_parameters()}
    with torch.no_grad():
        for n, p in compose(moves)(theta, torch.ones((), dtype=torch.float64)).items():
            other.get_parameter(n).copy_(p)
        y = module(x)
        flat = [torch.cat([p.flatten() for p in m.parameters()]) for m in (module, other)]
        assert (flat[1] - flat[0]).norm() > 0.3 * flat[0].norm()
        even = [balance(m, x) for m in (module, other)]
        for m in even:
            assert (m(x) - y).norm() < 1e-12 * y.norm()
        found = [torch.cat([p.flatten() for p in m.parameters()]) for m in even]
        assert (found[1] - found[0]).norm() < 1e-9 * found[0].norm()
        assert found[0].norm() <= flat[0].norm()
    for one in (*channels, *heads):
        assert float(imbalance({n: p.detach().double() for n, p in even[0].named_parameters()}, one).max()) < 1e-9


def test_one_step_of_descent_changes_a_charge_by_its_square():
    """Noether in discrete time: for K = A theta with A symmetric, Q = theta'A theta / 2 changes by exactly eta^2 g'A g / 2."""
    objective = build("resnet")
    flow = found_in(objective)[0]
    one = next(one for one in rescalings.find(flow) if one.name == "layer1.0.bn1")
    symmetry, (_, g) = rescalings.random(one, torch.Generator().manual_seed(0)), objective.gradient()

    def charge(u, v):
        u, v = objective.named(u), objective.named(v)
        k, _ = generator(symmetry.curve, u, v)
        return float(sum((piece * v[name]).sum() for name, piece in k.items()))

    theta = objective.theta
    eta = float(theta.norm() / g.norm())
    stepped = theta - eta * g
    before, after = charge(theta, theta) / 2, charge(stepped, stepped) / 2
    assert after - before == pytest.approx(eta**2 * charge(g, g) / 2, rel=1e-9)
    assert abs(after - before) > 1e-7 * abs(before)


def test_attention_is_found_whatever_the_order_of_its_axes():
    """The same block with rows of qkv as (heads, d, 3), without fused attention: 2 heads of 3 channels."""

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.proj, self.head = nn.Linear(3, 18), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            q, k, v = self.qkv(x.flatten(2).mT).unflatten(-1, (2, 3, 3)).permute(4, 0, 2, 1, 3).unbind(0)
            scores = (q * 3**-0.5) @ k.transpose(-2, -1)
            return self.head(self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)).mean(1))

    torch.manual_seed(0)
    objective = Objective(Odd().double(), [(torch.randn(4, 3, 2, 2).double(), torch.arange(4) % 3)])
    flow, proposed = found_in(objective)
    pairs = {pair.family: pair for pair in attention.pairs(flow)}
    assert pairs["S6"].left.index.tolist() == [[0, 3, 6], [9, 12, 15]]
    assert pairs["S7"].left.index.tolist() == [[2, 5, 8], [11, 14, 17]]
    verdict = confirm(objective, proposed)
    assert {"S2", "S5", "S6", "S7"} <= {one.family for one in verdict.confirmed}
    assert not verdict.refuted
    assert Point(objective).along(verdict.confirmed).r2 < 1e-13


def test_gains_may_have_the_shape_of_maps():
    """Layer scale as in FastViT: one number a channel, in a parameter (channels, 1, 1)."""

    class Gain(nn.Module):
        def __init__(self):
            super().__init__()
            self.gamma = nn.Parameter(torch.randn(4, 1, 1))

        def forward(self, x):
            return x * self.gamma

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Gain(), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.AvgPool2d(4), nn.Flatten())
    objective = Objective(net.double(), [(torch.randn(4, 3, 6, 6).double(), torch.arange(4) % 5)])
    verdict = confirm(objective, found_in(objective)[1])
    assert {("S13", "0"), ("S8", "1.gamma")} <= {(one.family, one.name) for one in verdict.confirmed}
    assert not verdict.refuted
    assert Point(objective).along(verdict.confirmed).r2 < 1e-13


def test_a_layer_that_is_used_twice_is_left_alone():
    shared = nn.Linear(6, 6)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(6, 3)
    )
    flow = dataflow.trace(net, torch.rand(2, 3, 2, 2))
    assert not rescalings.find(flow)
    assert not list(scales.stream_scales(flow, torch.Generator().manual_seed(0)))


def test_the_control_is_what_is_not_a_symmetry():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    objective = Objective(net, [(torch.rand(4, 3, 2, 2).double(), torch.arange(4) % 3)])
    flow, proposed = found_in(objective)
    assert probe._refuse(objective, control(flow, proposed)).r2 > 1e-2
    with pytest.raises(Failed, match="the control at '1'"):
        probe._refuse(objective, [one for one in proposed if one.family == "S8"])
