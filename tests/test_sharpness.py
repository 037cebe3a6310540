"""Sharpness against closed forms of quadratics, vertices of small boxes, and re-gauged copies of one network."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn.functional import mse_loss

import eqbench
from eqbench.curvature.objective import Objective
from eqbench.probes import sharpness
from eqbench.probes.landscape import ascent
from eqbench.probes.landscape.ascent import Ball, ascend
from eqbench.probes.landscape.kinks import kink_ratios
from eqbench.probes.landscape.losses import image_losses, normalised_cross_entropy
from eqbench.probes.sharpness import Kind, Place
from eqbench.results import Status
from eqbench.symmetries import balance
from eqbench.symmetries.balancing import confirmed
from eqbench.symmetries.transformations import compose


def quadratic(n: int, seed: int):
    """An indefinite g'u + u'Au / 2 with a few large curvatures, and (A, g)."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator).double())
    values = torch.cat([torch.tensor([4.0, 1.5, -3.0]), 0.3 * torch.randn(n - 3, generator=generator)]).double()
    a, g = (q * values) @ q.T, 0.1 * torch.randn(n, generator=generator).double()
    return (lambda u: (float(g @ u + u @ a @ u / 2), g + a @ u)), a, g


def trust_region(a, g, radius: float) -> float:
    """max g'u + u'Au / 2 over |u| <= radius: u = (mu I - A)^-1 g with mu >= max(lambda, 0) such that |u| = radius."""
    values, q = torch.linalg.eigh(a)
    b = q.T @ g
    low = max(float(values[-1]), 0.0)
    high = low + float(g.norm()) / radius + 1
    for _ in range(200):
        mu = (low + high) / 2
        low, high = (mu, high) if float((b / (mu - values)).norm()) > radius else (low, mu)
    u = b / (high - values)
    return float(b @ u + (values * u * u).sum() / 2)


@pytest.mark.parametrize("radius", [0.02, 0.1, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_worst_case_of_a_quadratic_is_the_trust_region_solution(radius, seed):
    function, a, g = quadratic(40, seed)
    ball = Ball(2, radius)
    best = trust_region(a, g, radius)
    found = ascend(function, ball, ball.edge(g), 20)
    assert found.at.norm() <= radius * (1 + 1e-12)
    assert 0.98 * best <= found.value <= best * (1 + 1e-9)
    assert ascend(function, ball, ball.edge(g), 400).value >= 0.998 * best


def test_leaving_the_ball_is_noticed(monkeypatch):
    """Mutation: without the projection the trust-region solution is exceeded."""
    function, a, g = quadratic(40, 0)
    monkeypatch.setattr(Ball, "project", lambda self, u: u)
    assert ascend(function, Ball(2, 0.1), Ball(2, 0.1).edge(g), 20).value > 1.01 * trust_region(a, g, 0.1)


def test_without_halving_and_returns_the_solution_is_missed(monkeypatch):
    """Mutation: plain steps of twice the radius jump from side to side of a box."""
    generator = torch.Generator().manual_seed(1)
    a = -torch.diag(torch.rand(20, generator=generator).double() * 50)
    g = torch.randn(20, generator=generator).double()
    function = lambda u: (float(g @ u + u @ a @ u / 2), g + a @ u)  # noqa: E731
    ball = Ball(math.inf, 1.0)
    at = (g / -a.diagonal()).clamp(-1, 1)
    best = function(at)[0]
    assert ascend(function, ball, ball.edge(g.sign()), 20).value > 0.99 * best
    monkeypatch.setattr(ascent, "checkpoints", lambda steps: [])
    assert ascend(function, ball, ball.edge(g.sign()), 100).value < 0.8 * best


@pytest.mark.parametrize("seed", range(4))
def test_worst_case_in_a_box_is_its_best_vertex(seed):
    """A convex function is largest at one of the 2^n vertices: all are tried."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(10, 4, generator=generator).double()
    a, g = a @ a.T, torch.randn(10, generator=generator).double()
    function = lambda u: (float(g @ u + u @ a @ u / 2), g + a @ u)  # noqa: E731
    ball = Ball(math.inf, 0.03)
    signs = torch.cartesian_prod(*[torch.tensor([-0.03, 0.03], dtype=torch.float64)] * 10)
    best = float((signs @ g + (signs @ a * signs).sum(1) / 2).max())
    assert best * 0.98 <= ascend(function, ball, ball.edge(g.sign()), 20).value <= best * (1 + 1e-12)


def small(activation=nn.GELU, images: int = 64, seed: int = 0):
    """A network with what it was trained on for a moment."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(48, 24), activation(), nn.Linear(24, 24), activation(), nn.Linear(24, 4)
    )
    x, y = torch.rand(images, 3, 4, 4), torch.randint(4, (images,))
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    return net.eval(), x, y


@pytest.mark.parametrize("kind", [Kind(False, 2), Kind(True, 2), Kind(True, math.inf)])
def test_the_ascent_beats_random_search_and_plain_gradient_steps(kind):
    net, x, y = small()
    place = Place(Objective(net, [(x, y)]))
    radius = {Kind(False, 2): 0.3, Kind(True, 2): 1.0, Kind(True, math.inf): 0.05}[kind]
    ball, scale, level = Ball(kind.p, radius), place.scale(kind), place.start[0]
    found = place.worst(kind, [radius], 20)[0].mean()

    def rise(u):
        value, gradient = place.objective.gradient(place.theta + scale * u)
        return value - level, scale * gradient

    random = max(rise(ball.edge(ball.steepest(place.noise(seed))))[0] for seed in range(100))
    assert found > 2 * random
    for size in (2.0, 0.5, 0.1):
        u = ball.edge(ball.steepest(scale * place.start[1]))
        values = []
        for _ in range(20):
            value, gradient = rise(u)
            values.append(value)
            u = ball.project(u + size * radius * ball.steepest(gradient))
        assert found >= 0.995 * max(values)


def test_a_larger_ball_is_never_lower():
    net, x, y = small()
    place = Place(Objective(net, [(x, y)]))
    for kind in sharpness.WORST.values():
        heights = [rise.mean() for rise in place.worst(kind, [0.01, 0.02, 0.04], 5)]
        assert heights == sorted(heights)
        assert heights[0] > 0


def test_the_average_is_the_trace_term_of_a_quadratic():
    """E L(th + rho |th| z) - L = rho^2 / 2 sum_i th_i^2 H_ii, pair by pair without an odd part."""
    torch.manual_seed(0)
    linear = nn.Linear(6, 2, bias=False).double()
    x, y = torch.randn(40, 6).double(), torch.randn(40, 2).double()
    place = Place(Objective(linear, [(x, y)], mse_loss))
    samples = place.average(0.3, 400).mean(1)
    diagonal = x.square().mean(0).expand(2, 6).reshape(-1)  # H = (2 / (40 * 2)) X'X for each output
    expected = 0.3**2 / 2 * float((place.theta.square() * diagonal).sum())
    error = samples.std(ddof=1) / len(samples) ** 0.5
    assert abs(samples.mean() - expected) < 3 * error
    assert error < 0.05 * expected
    measured = sharpness._over_directions(place.average(0.3, 16), 40)
    assert measured.lo < expected < measured.hi
    for z, sample in enumerate(samples[:3]):  # the quadratic form itself, for each direction
        d = (0.3 * place.theta.abs() * place.noise(z)).view(2, 6)
        assert sample == pytest.approx(float((x @ d.T).square().mean()), rel=1e-9)


def test_losses_of_images_are_those_of_the_objective():
    net, x, y = small()
    for loss in (nn.functional.cross_entropy, normalised_cross_entropy):
        objective = Objective(net, [(x[:40], y[:40]), (x[40:], y[40:])], loss).double()  # no rounding of this CPU's
        assert image_losses(objective).mean() == pytest.approx(objective.value(), rel=1e-6)


def test_normalised_logits_do_not_see_the_temperature():
    net, x, y = small()
    hot = copy.deepcopy(net)
    with torch.no_grad():
        hot[-1].weight.mul_(3), hot[-1].bias.mul_(3)
    options = {"normalise_logits": True, "steps": 10, "kink_images": 8}
    plain, heated = (eqbench.probe("sharpness", one, x, y, **options).metrics for one in (net, hot))
    for name in ("adaptive_sharpness", "average_sharpness"):  # relative changes do not see the head's scale either
        assert heated[name].value == pytest.approx(plain[name].value, rel=0.02)
    options["normalise_logits"] = False
    plain, heated = (eqbench.probe("sharpness", one, x, y, **options).metrics for one in (net, hot))
    ratio = heated["adaptive_sharpness"].value / plain["adaptive_sharpness"].value
    assert max(ratio, 1 / ratio) > 1.5


@pytest.mark.parametrize(("activation", "smooth"), [(nn.GELU, True), (nn.Tanh, True), (nn.ReLU, False)])
def test_kinks_tell_relu_from_smooth_networks(activation, smooth):
    net, x, y = small(activation, images=256)
    fine, middle, coarse = kink_ratios(Objective(net, [(x, y)]), 256, 8, [1e-4, 1e-3, 1e-2])
    if smooth:
        assert fine.value == pytest.approx(1, abs=2e-4)
        assert middle.value == pytest.approx(1, abs=2e-4)
        assert coarse.value == pytest.approx(1, abs=1e-2)
    else:
        assert coarse.lo > 1.05


def test_a_step_too_small_for_the_arithmetic_is_noticed():
    """Mutation: finite differences in single precision are rounding alone."""
    net, x, y = small(images=256)
    objective = Objective(net, [(x, y)])
    objective.double = lambda: objective
    right = kink_ratios(Objective(net, [(x, y)]), 256, 4, [1e-4])[0].value
    theta, v = objective.theta, objective.theta * torch.randn(objective.size)
    step = 1e-4 * theta.norm() / v.norm()
    bend = objective.value(theta + step * v) + objective.value(theta - step * v) - 2 * objective.value()
    exact = Objective(copy.deepcopy(net).double(), [(x.double(), y)])
    theta, v, step = theta.double(), v.double(), step.double()
    true = exact.value(theta + step * v) + exact.value(theta - step * v) - 2 * exact.value()
    assert right == pytest.approx(1, abs=1e-3)
    assert abs(bend / true - 1) > 1e-2


def gauges(net, seed: int):
    """The same function with every hidden channel of a ReLU network rescaled by 2^U(-3, 3)."""
    other, generator = copy.deepcopy(net), torch.Generator().manual_seed(seed)
    linears = [layer for layer in other if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for one, following in pairwise(linears):
            a = 2 ** (6 * torch.rand(one.out_features, generator=generator) - 3)
            one.weight.mul_(a[:, None]), one.bias.mul_(a), following.weight.div_(a)
    return other


def test_copies_of_one_network_with_other_gauges_are_equally_sharp_after_balancing():
    net, x, y = small(nn.ReLU)
    copies = [net, *(gauges(net, seed) for seed in range(3))]
    for one in copies:
        torch.testing.assert_close(one(x), net(x), rtol=1e-3, atol=1e-4)
    found = [eqbench.probe("sharpness", one, x, y, kink_images=8, sam_radius=0.05) for one in copies]
    assert all(result.status is Status.ok for result in found)
    for name in ("sam_sharpness", "adaptive_sharpness", "adaptive_max_sharpness", "average_sharpness"):
        values = np.array([result.metrics[name].value for result in found])
        assert values.max() / values.min() < 1.02, name
    ratios = np.array([result.metrics["sam_gauge_ratio"].value for result in found])
    assert ratios.max() / ratios.min() > 3, "wildly different before"
    relative = np.array([result.metrics["average_gauge_ratio"].value for result in found])
    assert relative.max() / relative.min() < 1.1, "relative changes do not see the scale of a channel"


def regauged(net, x, seed: int):
    """The same function, every channel that can be rescaled by a factor in [1/8, 8], and heads in another basis."""
    channels, heads = confirmed(net, x)
    generator = torch.Generator().manual_seed(seed)
    moves = [one.random(generator) for one in heads]
    for one in channels:
        uniform = torch.rand(len(one.classes), generator=generator, dtype=torch.float64)
        moves.append(one.curve(math.log(8) * (2 * uniform - 1)))
    other = copy.deepcopy(net).double()
    theta = {name: p.detach() for name, p in other.named_parameters()}
    for name, moved in compose(moves)(theta, torch.ones((), dtype=torch.float64)).items():
        theta[name].copy_(moved)
    return other.to(x)


@pytest.mark.parametrize(("name", "options"), [("test_resnet", {}), ("test_vit", {"img_size": 32})])
def test_copies_of_timm_models_with_other_gauges_are_equally_sharp_after_balancing(name, options):
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=4, **options).eval()
    x, y = torch.rand(16, 3, 32, 32), torch.randint(4, (16,))
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.02 * torch.randn_like(p))
        copies = [net, regauged(net, x[:2], 0)]
    before, after = [], []
    for one in copies:
        torch.testing.assert_close(one(x), net(x), rtol=1e-3, atol=1e-4)
        for places, module in ((before, one), (after, balance(one, x[:2]))):
            place = Place(Objective(module, [(x, y)]))
            places.append([place.worst(kind, [0.005], 6)[0].mean() for kind in (Kind(False, 2), Kind(True, 2))])
    assert np.ptp(after, axis=0) == pytest.approx(0, abs=5e-3 * np.min(after))
    assert max(before)[0] / min(before)[0] > 1.5


def test_without_balancing_the_copies_differ(monkeypatch):
    """Mutation: the weights as they are in the place of the balanced ones."""
    net, x, y = small(nn.ReLU)
    monkeypatch.setattr(sharpness, "balance", lambda module, x: copy.deepcopy(module))
    values = [eqbench.probe("sharpness", one, x, y, kink_images=8, sam_radius=0.05).metrics["sam_sharpness"].value
              for one in (net, gauges(net, 0), gauges(net, 1))]  # fmt: skip
    assert max(values) / min(values) > 2


def test_the_network_is_left_alone_and_the_same_inputs_give_the_same_numbers():
    net, x, y = small(nn.ReLU)
    before = copy.deepcopy(net.state_dict())
    first, second = (eqbench.probe("sharpness", net, x, y, steps=5, kink_images=8) for _ in range(2))
    assert first.metrics == second.metrics
    assert first.curves == second.curves
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_without_labels_the_predicted_classes_are_used():
    net, x, _ = small(nn.ReLU)
    predicted = net(x).argmax(1)
    free, given = (eqbench.probe("sharpness", net, x, y, steps=5, kink_images=8).metrics for y in (None, predicted))
    assert free == given


def test_a_loss_that_overflows_is_none_with_the_reason():
    class Overflowing(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(48, 4)

        def forward(self, x):
            f = self.head(x.flatten(1))
            return f * torch.exp(torch.clamp(1e4 * (f.abs().amax() - 1.2), max=200) * (f.abs().amax() > 1.2))

    torch.manual_seed(0)
    net, x, y = Overflowing(), torch.rand(32, 3, 4, 4), torch.randint(4, (32,))
    found = eqbench.probe("sharpness", net, x, y, adaptive_max_radius=10.0, kink_images=8).metrics
    lost = found["adaptive_max_sharpness_double"]
    assert lost.value is None
    assert "not finite" in lost.reason
