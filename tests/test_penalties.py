"""Penalties on broken symmetry against closed forms, and what they leave alone."""

import pytest
import torch
from torch import nn

from eqbench import groups, penalties
from eqbench.penalties import lie, penalty, twirl
from eqbench.schema import Form

D4, ROTATION = groups.get("d4"), groups.get("rotation")


def seeded(number=0):
    return torch.Generator().manual_seed(number)


def images(count, size=9, dtype=torch.float64):
    return torch.rand(count, 3, size, size, generator=seeded(3), dtype=dtype)


def network(kernel=3):
    """Batch norm and dropout, smooth; with a kernel of 1 it does not see where its pixels lie."""
    torch.manual_seed(1)
    mixing = [nn.Conv2d(3, 8, kernel), nn.BatchNorm2d(8), nn.GELU(), nn.Dropout(0.5)]
    return nn.Sequential(*mixing, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).double().train()


class Grey(nn.Module):
    """The same of the mean of the channels alone."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.mean(1, keepdim=True).expand_as(x))


@pytest.mark.parametrize(
    ("form", "name", "invariant"),
    [
        (Form.twirl, "d4", lambda: network(kernel=1)),
        (Form.twirl, "rgb_permutations", lambda: Grey(network())),
        (Form.lie, "hue", lambda: Grey(network())),
    ],
)
def test_it_vanishes_for_an_invariant_network_and_for_no_other(form, name, invariant):
    """Dropout and running statistics of batch norm do not count."""
    x, group = images(12), groups.get(name)
    found = [penalty(net.train(), x, form, group, seeded()).item() for net in (invariant(), network())]
    assert found[1] > 1e-5
    assert found[0] < 1e-20


@pytest.mark.parametrize(("form", "name"), [(Form.twirl, "d4"), (Form.lie, "hue")])
def test_its_forward_is_in_ieee_arithmetic(form, name):
    seen = []
    net = network()
    net.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.conv.fp32_precision))
    before = torch.backends.cudnn.conv.fp32_precision
    penalty(net, images(8), form, groups.get(name), seeded())
    assert set(seen) == {"ieee"} != {before}
    assert torch.backends.cudnn.conv.fp32_precision == before


def orbit_variance(function, x, group):
    orbit = torch.stack([function(group.act(x, g)) for g in group.elements()])
    return float((orbit - orbit.mean(0)).square().sum(2).mean())


def test_twirl_is_the_orbits_variance_for_two_elements():
    """No matter which of the two comes first: nothing is left to chance."""
    weights = torch.randn(3 * 81, 4, generator=seeded(1), dtype=torch.float64)
    x, group = images(5), groups.get("hflip")
    for number in range(3):
        found = float(twirl(lambda z: z.flatten(1) @ weights, x, group, seeded(number)))
        assert found == pytest.approx(orbit_variance(lambda z: z.flatten(1) @ weights, x, group), rel=1e-12)


@pytest.mark.parametrize("name", ["c4", "d4", "rgb_permutations"])
def test_twirl_is_an_unbiased_estimate_of_the_orbits_variance(name):
    """Within four standard errors, themselves below 2 %, over 200 draws."""
    group, x = groups.get(name), images(50)
    weights = torch.randn(3 * 81, 4, generator=seeded(1), dtype=torch.float64)

    def function(z):
        return torch.tanh(z.flatten(1) @ weights)

    found = torch.tensor([float(twirl(function, x, group, seeded(i))) for i in range(200)])
    truth, error = orbit_variance(function, x, group), float(found.std()) / 200**0.5
    assert error < 0.02 * truth
    assert abs(float(found.mean()) - truth) < 4 * error


@pytest.mark.parametrize("name", ["rotation", "hue", "diffeo", "affine"])
def test_lie_is_the_squared_derivative_along_the_velocity(name, monkeypatch):
    """Against forward mode, and the error falls with the square of the step."""
    group, x = groups.get(name), images(6)
    weights = torch.randn(3 * 81, 4, generator=seeded(1), dtype=torch.float64) / 9

    def function(z):
        return torch.tanh(z.flatten(1) @ weights)

    names = group.generators()
    for number in range(3):
        v = group.velocity(x, names[int(torch.randint(len(names), (), generator=seeded(number)))])
        along = torch.func.jvp(function, (x,), (v,))[1]
        truth = float(along.square().sum(1).mean() / v.square().mean())
        errors = []
        for step in (0.01, 0.005):
            monkeypatch.setattr(penalties, "STEP", step)
            errors.append(abs(float(lie(function, x, group, seeded(number))) / truth - 1))
        assert errors[0] < 1e-2
        assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)


def test_lie_of_images_that_the_group_does_not_move_is_zero():
    assert float(lie(lambda z: z.flatten(1), torch.full((4, 3, 8, 8), 0.5), groups.get("translation"), seeded())) == 0


def test_a_constant_common_to_all_classes_does_not_count():
    class Shifted(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x) + 100 * x[:, :, :2].mean((1, 2, 3))[:, None]

    x = images(8)
    for form, group in ((Form.twirl, D4), (Form.lie, ROTATION)):
        plain, shifted = (penalty(net, x, form, group, seeded()) for net in (network(), Shifted(network()).train()))
        assert shifted.item() == pytest.approx(plain.item(), rel=1e-8)


@pytest.mark.parametrize(("form", "group"), [(Form.twirl, D4), (Form.lie, ROTATION)])
def test_it_leaves_all_but_gradients_alone(form, group):
    net, x = network(), images(8)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    penalty(net, x, form, group, seeded()).backward()
    assert torch.equal(torch.get_rng_state(), state), "dropout draws nothing"
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items()), "running statistics stay"
    assert all(module.training for module in net.modules())
    assert net[1].track_running_stats
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert any(p.grad.norm() > 1e-6 for p in net.parameters())


def test_batch_norm_is_that_of_the_batch():
    """So that the penalty keeps the scale invariance that batch norm gives the convolution before it in training."""
    net, x = network(), images(8)
    found = penalty(net, x, Form.twirl, D4, seeded())
    net[1].running_var.mul_(100)
    with torch.no_grad():
        net[0].weight.mul_(3)
        net[0].bias.mul_(3)
    assert penalty(net, x, Form.twirl, D4, seeded()).item() == pytest.approx(found.item(), rel=1e-3)


def test_half_of_the_batch_twice():
    seen = []
    net = network()
    net.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    for count, taken in ((8, 8), (9, 10), (2, 2)):
        penalty(net, images(count), Form.twirl, D4, seeded())
        assert seen.pop() == taken
