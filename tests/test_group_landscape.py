"""Oracles of the landscape under a group: the law of T_g, exact symmetry, the quadrature identity, invariant wrappers."""

import numpy as np
import pytest
import timm
import torch
from timm.models.vgg import VGG
from torch import nn
from torch.func import functional_call

from eqbench import probes
from eqbench.curvature.hessian import Hessian
from eqbench.curvature.objective import Objective
from eqbench.errors import Unsupported
from eqbench.groups import get
from eqbench.groups.twin import symmetrise
from eqbench.groups.weights import act_on_weights, law_error
from eqbench.probes.landscape.group_action import Reordering, absorbed, actions, canonical, check_law
from eqbench.probes.landscape.group_tangents import noise_ratio, norm_ratio
from eqbench.symmetries.permutation import find_spaces, general_position, permute

VIT = {"num_classes": 10, "img_size": 32}
CHEAP = {"probes": 2, "trace_products": 2, "points": 3, "blocks": 4, "max_products": 60, "tolerance": 1e-6}
CHEAP |= {"aligned_below": 0, "aligned_above": 1, "resamples": 100}


def vgg():
    return VGG([8, "M", 8, "M", 16, "M", 16, "M", 16, "M"], num_classes=10, mlp_ratio=0.01)


LAWS = [
    ("vit", lambda: timm.create_model("test_vit", num_classes=10, img_size=64), 64),
    ("convnext", lambda: timm.create_model("test_convnext", num_classes=10), 64),
    ("resnet", lambda: timm.create_model("resnet18", num_classes=10), 65),
    ("efficientnet", lambda: timm.create_model("test_efficientnet", num_classes=10), 65),
    ("vgg", vgg, 64),
]


@pytest.mark.parametrize("group", ["hflip", "vflip", "c4", "transpose"])
@pytest.mark.parametrize(("build", "size"), [law[1:] for law in LAWS], ids=[law[0] for law in LAWS])
def test_the_law(build, size, group):
    """f(gx; T_g theta) = f(x; theta) wherever the grid is symmetric; loss, gradient and Hessian follow."""
    torch.manual_seed(0)
    x, group = torch.rand(2, 3, size, size), get(group)
    network = general_position(build(), x)
    assert law_error(network, group, group.generators()[0], x.double()) < 1e-12


def test_where_the_grid_is_not_symmetric_there_is_no_law():
    x = torch.rand(2, 3, 64, 64)
    resnet = timm.create_model("resnet18", num_classes=10).eval()
    with pytest.raises(Unsupported, match="at 64 px: the logits change by"):
        check_law(resnet, get("hflip"), get("hflip").generators()[0], x)
    check_law(resnet, get("transpose"), get("transpose").generators()[0], x)  # which moves no pixel off its row's grid


def test_patches_move_position_embeddings():
    """A ViT's tokens are the tiles: shuffling them shuffles its position embedding, and nothing else."""
    x, group = torch.rand(2, 3, 64, 64), get("patches_16")
    network = general_position(timm.create_model("test_vit", num_classes=10, img_size=64), x)
    assert law_error(network, group, 1, x.double()) < 1e-12


def test_a_grid_mirrored_the_wrong_way_breaks_the_law():
    """Mutation: the position embedding upside down, the kernels left to right."""
    x, group = torch.rand(2, 3, 32, 32).double(), get("hflip")
    network = general_position(timm.create_model("test_vit", **VIT), x)
    own = dict(network.named_parameters())
    moved = act_on_weights(network, group, group.generators()[0], own)
    wrong = act_on_weights(network, get("vflip"), get("vflip").generators()[0], own)
    with torch.no_grad():
        still = network(x)
        assert (functional_call(network, moved, (x.flip(-1),)) - still).norm() < 1e-12 * still.norm()
        mixed = moved | {"pos_embed": wrong["pos_embed"]}
        assert (functional_call(network, mixed, (x.flip(-1),)) - still).norm() > 1e-3 * still.norm()


@pytest.mark.parametrize("name", ["hflip", "d4"])
def test_symmetrising_is_the_mean_of_the_action(name):
    network, group = timm.create_model("test_vit", **VIT), get(name)
    nn.init.normal_(network.pos_embed)
    own = dict(network.named_parameters())
    orbit = [act_on_weights(network, group, g, own) for g in group.elements()]
    for key, p in symmetrise(network, group).named_parameters():
        torch.testing.assert_close(p, torch.stack([weights[key] for weights in orbit]).mean(0))


def orbits(network, group, n=8, size=32):
    """The mean loss over images and their orbits under the first generator, in float64."""
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(n, 3, size, size, generator=generator, dtype=torch.float64)
    y = torch.randint(10, (n,), generator=generator)
    g, power, images = group.generators()[0], group.elements()[0], []
    while not images or power != group.elements()[0]:
        images.append(group.act(x, power))
        power = group.multiply(g, power)
    return Objective(network, [(torch.cat(images), y.repeat(len(images)))]), x


def trained_like(name, **options):
    torch.manual_seed(1)
    network = timm.create_model(name, num_classes=10, **options).double().eval()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return network


NETWORKS = [
    ("test_vit", "hflip", {"img_size": 32}, 32),
    ("test_convnext", "c4", {}, 32),
    ("test_resnet", "hflip", {"avg_down": False}, 33),
]


@pytest.fixture(scope="module", params=NETWORKS, ids=[n[0] for n in NETWORKS])
def scene(request):
    name, group, options, size = request.param
    group = get(group)
    network = trained_like(name, **options)
    objective, x = orbits(canonical(network, torch.rand(2, 3, size, size).double()), group, size=size)
    return objective, group, actions(objective, group, group.generators()[0], x[:2], draws=2)


def test_q_leaves_the_loss_and_turns_its_gradient(scene):
    """L(Q theta) = L(theta) over orbits, with matched and with random P; g(Q theta) = Q g(theta)."""
    objective, _, acting = scene
    theta, (loss, gradient) = objective.theta, objective.gradient()
    for q in (acting.bare, acting.matched, *acting.random):
        assert objective.value(q(theta)) == pytest.approx(loss, rel=1e-12)
        moved = objective.gradient(q(theta))[1]
        assert (moved - q(gradient)).norm() < 1e-11 * gradient.norm()
    assert acting.matched.order % acting.bare.order == 0


def test_running_statistics_left_behind_break_it():
    """Mutation: without `absorbed`, permuted channels meet the statistics of others."""
    group, network = get("hflip"), trained_like("test_resnet", avg_down=False)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_var.copy_(torch.rand_like(norm.running_var) + 0.5)
    for prepared, kept in ((network, False), (absorbed(network), True)):
        objective, x = orbits(prepared, group, size=33)
        q = actions(objective, group, group.generators()[0], x[:2], draws=1).random[0]
        assert (abs(objective.value(q(objective.theta)) / objective.value() - 1) < 1e-12) == kept


def residuals(objective, q):
    theta, (_, gradient) = objective.theta, objective.gradient()
    v = torch.randn(objective.size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    hessian = Hessian(objective)
    hv = hessian @ v
    found = ((q(theta) - theta, theta), (q(gradient) - gradient, gradient), (hessian @ q(v) - q(hv), hv))
    return [float(a.norm() / b.norm()) for a, b in found]


def at(objective, theta):
    with torch.no_grad():
        for p, piece in zip(objective.module.parameters(), objective.split(theta), strict=True):
            p.copy_(piece)
    return Objective(objective.module, objective.batches)


def test_at_the_symmetrised_weights_all_three_vanish(scene):
    objective, _, acting = scene
    assert min(residuals(objective, acting.matched)) > 0.01
    plus = at(objective, acting.matched.fixed(objective.theta))
    assert max(residuals(plus, acting.matched)) < 1e-12
    assert min(residuals(plus, acting.random[0])) > 0.1


@pytest.mark.parametrize("bare", [True, False])
def test_transverse_curvature_is_the_mean_curvature_across(bare):
    """g_-(theta) = int_0^1 P_- H(theta_+ + t theta_-) theta_- dt, by 12 Gauss-Legendre nodes (smooth network)."""
    group = get("hflip")
    objective, x = orbits(canonical(trained_like("test_vit", img_size=32), torch.rand(2, 3, 32, 32).double()), group)
    acting = actions(objective, group, group.generators()[0], x[:2], draws=1)
    q = acting.bare if bare else acting.matched
    theta, gradient = objective.theta, objective.gradient()[1]
    plus = q.fixed(theta)
    minus, g_minus = theta - plus, gradient - q.fixed(gradient)
    nodes, weights = np.polynomial.legendre.leggauss(12)
    total = torch.zeros_like(theta)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        product = Hessian(at(objective, plus + node * minus)) @ minus
        total += weight * (product - q.fixed(product))
    assert (total - g_minus).norm() < 1e-10 * g_minus.norm()
    kappa = minus @ gradient / minus.square().sum()
    assert kappa == pytest.approx(float(minus @ total / minus.square().sum()), rel=1e-9)


def test_p_inverted_the_wrong_way():
    """Mutation: where channels turn in cycles of four, P T_g in the place of P^-1 T_g is no symmetry."""
    group = get("c4")
    g = group.generators()[0]
    objective, x = orbits(trained_like("test_convnext"), group)
    spaces = find_spaces(objective.module, x[:2]).spaces
    cycles = {space: torch.arange(space.size).reshape(-1, 4).roll(1, 1).flatten() for space in spaces}
    back = {space: pi.argsort() for space, pi in cycles.items()}
    places = objective.named(torch.arange(objective.size, dtype=torch.float64))
    turned = act_on_weights(objective.module, group, g, places)
    one, other = (Reordering(objective.flat(permute(turned, pi).values()).long()) for pi in (cycles, back))
    assert one.order == 4
    plus = at(objective, one.fixed(objective.theta))
    assert max(residuals(plus, one)) < 1e-12
    assert min(residuals(plus, other)) > 0.1
    matched = actions(plus, group, g, x[:2], draws=1).matched  # which finds the cycles again
    assert torch.equal(matched.index, one.index)


class Invariant(nn.Module):
    """The mean of a network's logits over a whole group."""

    def __init__(self, inner, group):
        super().__init__()
        self.inner, self.group = inner, group

    def forward(self, x):
        return torch.stack([self.inner(self.group.act(x, g)) for g in self.group.elements()]).mean(0)


def test_an_invariant_wrapper_has_no_gap_at_any_order():
    network = Invariant(trained_like("test_vit", img_size=32), get("hflip"))
    x, y = torch.rand(8, 3, 32, 32).double(), torch.randint(10, (8,))
    result = probes.probe("group_landscape", network, x, y, group="hflip", **CHEAP)
    assert result.status == "ok", result.reason
    for name in ("logit_gap", "gradient_gap", "lambda_gap", "trace_gap"):
        assert result.metrics[name].value < 1e-10, name
    plain = probes.probe("group_landscape", network.inner, x, y, group="hflip", **CHEAP)
    for name in ("logit_gap", "gradient_gap", "lambda_gap", "trace_gap"):
        assert plain.metrics[name].value > 1e-4, name


def test_the_probe_at_symmetric_weights():
    """End to end: a network projected on the fixed space shows nothing across it, and says why."""
    group = get("hflip")
    network = symmetrise(trained_like("test_convnext"), group)
    x, y = torch.rand(8, 3, 32, 32).double(), torch.randint(10, (8,))
    result = probes.probe("group_landscape", network, x, y, group="hflip", **CHEAP)
    assert result.status == "ok", result.reason
    m = result.metrics
    assert max(m[name].value for name in ("weight_residual", "gradient_residual", "commutator")) < 1e-11
    assert min(m[name].null for name in ("weight_residual", "gradient_residual", "commutator")) > 0.1
    assert m["transverse_curvature"].value is None
    assert "symmetric already" in m["transverse_curvature"].reason
    assert m["symmetry_barrier"].value < 1e-12


def test_what_has_no_action_on_weights_keeps_the_rest():
    """Without an action on weights, numbers that need one say why; the gaps need none."""
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=10).eval()  # with 2 x 2 average pools: no size is aligned
    x = torch.rand(8, 3, 32, 32)
    result = probes.probe("group_landscape", network, x, group="hflip", **CHEAP | {"tolerance": 1e-2})
    assert result.status == "ok", result.reason
    assert "at no size from 32 to 33 px" in result.metrics["gradient_residual"].reason
    assert result.metrics["logit_gap"].value > 0.1
    assert result.metrics["stem_pairing"].value > 0


def test_norm_ratio_of_vectors():
    """|sum a| / |sum b|, and its interval, are those of the vectors."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 40, 300, generator=generator, dtype=torch.float64) + 0.5
    found = norm_ratio(a, b, np.ones(40))
    assert found.value == pytest.approx(float(a.mean(0).norm() / b.mean(0).norm()), rel=1e-12)
    assert found.lo < found.value < found.hi
    other = torch.randn(40, 300, generator=generator, dtype=torch.float64) + 0.5
    expected = float((other.mean(0) - a.mean(0)).norm() / a.mean(0).norm())
    assert noise_ratio(a) == pytest.approx(expected, rel=0.1)
