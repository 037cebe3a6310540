"""Slices against closed forms: norms filter by filter, quadratics, a double well, planted permutations, rescaled batch norms."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import eqbench
from eqbench.curvature.hessian import Hessian
from eqbench.curvature.objective import Objective
from eqbench.probes import slices
from eqbench.probes.landscape import directions, gauge_orbits, interpolation
from eqbench.probes.landscape.directions import filter_normalised, on_support
from eqbench.probes.landscape.gauge_orbits import along_orbits, orbit_rise
from eqbench.probes.landscape.interpolation import barriers, path_losses
from eqbench.probes.notebook import tensor_subject
from eqbench.results import Status
from eqbench.schema import Slices
from eqbench.symmetries.permutation import apply, find_spaces
from eqbench.symmetries.transformations import Verdict


def convolutional(seed: int = 0):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip
    return net.eval()


def images(n: int = 32):
    torch.manual_seed(1)
    return torch.rand(n, 3, 8, 8), torch.randint(4, (n,))


def trained(net, x, y, steps: int = 80):
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    net.train()
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    return net.eval()


def check_filters(objective, d):
    for name, w, part in zip(objective.names, objective.parameters, objective.split(d), strict=True):
        if w.ndim < 2:
            assert not part.any(), name
        else:
            for filter, piece in zip(w, part, strict=True):
                assert float(piece.norm()) == pytest.approx(float(filter.detach().norm()), rel=1e-5), name


def test_directions_have_the_norm_of_every_filter():
    net = convolutional()
    with torch.no_grad():
        net[0].weight.mul_(torch.arange(8.0).view(-1, 1, 1, 1))  # one filter of zeros, and all of other norms
    objective = Objective(net, [images()])
    first, second = (filter_normalised(objective, seed) for seed in (0, 1))
    check_filters(objective, first)
    check_filters(objective, second)
    assert abs(float(first @ second) / float(first.norm() * second.norm())) < 0.3


def test_one_norm_a_tensor_is_noticed(monkeypatch):
    """Mutation: normalised by tensor, as some tools do under the same name."""

    def by_tensor(w, generator):
        z = torch.randn(w.shape, generator=generator)
        return torch.zeros_like(w) if w.ndim < 2 else z * (w.norm() / z.norm())

    monkeypatch.setattr(directions, "_filters", by_tensor)
    objective = Objective(convolutional(), [images()])
    with pytest.raises(AssertionError):
        check_filters(objective, filter_normalised(objective, 0))


def test_a_line_through_a_quadratic_is_a_parabola():
    torch.manual_seed(0)
    linear = nn.Linear(5, 3).double()
    x, y = torch.randn(30, 5).double(), torch.randn(30, 3).double()
    objective = Objective(linear, [(x, y)], mse_loss)
    hessian, times = Hessian(objective), np.linspace(-2, 2, 9)
    d = filter_normalised(objective, 0)
    slope, bend = float(objective.gradient()[1] @ d), float(d @ (hessian @ d))
    found = np.array(slices.line(objective, d, times).losses)
    assert np.allclose(found, objective.value() + times * slope + times**2 * bend / 2, rtol=1e-12)
    e = filter_normalised(objective, 1)
    plane = np.array(slices.surface(objective, d, e, np.linspace(-2, 2, 9)))
    assert np.allclose(plane[:, 4], found, rtol=1e-3)
    assert np.allclose(plane[4], slices.line(objective, e, times).losses, rtol=1e-3)
    mixed = float(d @ (hessian @ e))
    s, t = np.meshgrid(times, times, indexing="ij")
    quadratic = (objective.value() + s * slope + t * float(objective.gradient()[1] @ e) + s**2 * bend / 2 + s * t * mixed
                 + t**2 * float(e @ (hessian @ e)) / 2)  # fmt: skip
    assert np.allclose(plane, quadratic, rtol=1e-3)


@pytest.mark.parametrize("images_seen", [16, 32])
def test_the_slice_along_an_eigenvector_bends_as_its_eigenvalue_says(images_seen, monkeypatch):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.GELU(), nn.Linear(6, 4))
    x, y = images(images_seen)
    result = eqbench.probe("slices", net, x, y, directions=2, grid=0, points=5)
    ratio = result.metrics["eigen_slice_ratio"]
    assert ratio.value == pytest.approx(1, abs=1e-3)
    curve = result.curves["eigenvectors"][0]
    assert curve["curvature"] * curve["times"][-1] ** 2 / 2 == pytest.approx(1, rel=1e-3)  # as far as one nat
    assert curve["losses"][2] == pytest.approx(result.curves["lines"][0]["losses"][2])
    honest = slices.extreme_eigenpairs

    def another(*args, **kwargs):
        """Mutation: another direction in the place of the first eigenvector."""
        pairs = honest(*args, **kwargs)
        pairs.vectors = pairs.vectors.flip(1)
        return pairs

    monkeypatch.setattr(slices, "extreme_eigenpairs", another)
    wrong = eqbench.probe("slices", net, x, y, directions=2, grid=0, points=5).metrics["eigen_slice_ratio"]
    assert abs(wrong.value - 1) > 0.05


class DoubleWell(nn.Module):
    """Its cross-entropy of class 0 is h(w) = 0.1 + (w^2 - 1)^2, whatever the image."""

    def __init__(self, w: float):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, x):
        other = (0.1 + (self.w**2 - 1) ** 2).expm1().log()
        return torch.stack([torch.zeros_like(other), other]).expand(len(x), 2)


def test_the_barrier_of_a_double_well_is_its_height():
    x, y = torch.rand(8, 3, 2, 2).double(), torch.zeros(8, dtype=torch.int64)
    times = np.linspace(0, 1, 11)
    losses = path_losses(DoubleWell(-1.0), DoubleWell(1.0), [(x, y)], times)
    w = 2 * times - 1
    assert np.allclose(losses, (0.1 + (w**2 - 1) ** 2)[:, None])
    assert barriers(np.ones((1, 8)), losses, times)[0] == pytest.approx(1, rel=1e-12)
    losses = path_losses(DoubleWell(0.5), DoubleWell(1.0), [(x, y)], times)  # no barrier on one side
    assert barriers(np.ones((1, 8)), losses, times)[0] == pytest.approx(0, abs=0.05)


def subject(net, x, y, **others):
    one = tensor_subject(net, x, y)
    one.others = {name: (lambda other=other: other) for name, other in others.items()}
    return one


def measured(net, x, y, conf=None, **others):
    conf = conf or Slices(images=len(x), directions=2, grid=0, points=5, eigenvectors=0, resamples=200)
    return slices.run(subject(net, x, y, **others), None, None, conf)


def test_a_planted_permutation_has_a_barrier_until_it_is_matched():
    x, y = images(64)
    net = trained(convolutional(), x, y)
    moved = apply(net, find_spaces(net, x[:2]).random(5))
    torch.testing.assert_close(moved(x), net(x), rtol=1e-4, atol=1e-4)
    found = measured(net, x, y, s1=moved).metrics
    assert found["barrier_seed"].lo > 0.1
    assert found["barrier_seed_matched"].value < 1e-5
    assert found["barrier_seed_matched"].null > 0.1
    assert found["barrier_init"].value is None
    assert "initial" in found["barrier_init"].reason


def test_a_matching_that_finds_nothing_is_noticed(monkeypatch):
    """Mutation: channels left as they are."""
    x, y = images(64)
    net = trained(convolutional(), x, y)
    spaces = find_spaces(net, x[:2])
    moved = apply(net, spaces.random(5))
    identity = {space: torch.arange(space.size) for space in spaces.spaces}
    monkeypatch.setattr(interpolation.Spaces, "match", lambda self, a, b: identity)
    assert measured(net, x, y, s1=moved).metrics["barrier_seed_matched"].value > 0.1


def test_batch_norm_statistics_are_those_of_the_interpolated_network(monkeypatch):
    """A kernel before a batch norm may have any scale: the way to a larger one is flat once statistics are taken anew."""
    x, y = images(64)
    net = trained(convolutional(), x, y)
    larger = copy.deepcopy(net)
    with torch.no_grad():
        larger[3].weight.mul_(4)
    times = np.linspace(0, 1, 5)
    losses = path_losses(net, larger, [(x, y)], times).mean(1)
    assert np.ptp(losses) < 1e-3
    monkeypatch.setattr(interpolation, "reset_batch_norm", lambda module, batches: None)
    stale = path_losses(net, larger, [(x, y)], times).mean(1)
    assert np.ptp(stale) > 0.05, "mutation: running statistics of one end"


def test_the_networks_are_left_alone_and_the_same_inputs_give_the_same_numbers():
    x, y = images()
    net, other, init = trained(convolutional(), x, y, 20), convolutional(1), convolutional(0)
    before = [copy.deepcopy(one.state_dict()) for one in (net, other, init)]
    conf = Slices(images=32, directions=2, grid=5, points=5, eigenvectors=1, resamples=200)
    first, second = (measured(net, x, y, conf, init=init, s1=other) for _ in range(2))
    assert first.metrics == second.metrics
    assert first.curves == second.curves
    for one, kept in zip((net, other, init), before, strict=True):
        assert all(torch.equal(value, kept[name]) for name, value in one.state_dict().items())
    assert {(path["to"], path["order"]) for path in first.curves["paths"]} == {
        (to, order) for to in ("init", "s1") for order in ("as it is", "matched", "random")
    }
    assert first.metrics["barrier_seed"].lo <= first.metrics["barrier_seed"].value <= first.metrics["barrier_seed"].hi


def test_a_network_without_others_says_so():
    x, y = images(16)
    result = eqbench.probe("slices", convolutional(), x, y, directions=2, grid=0, points=5, eigenvectors=0)
    assert result.status is Status.ok
    assert result.metrics["slice_rise"].value is not None
    for name in ("barrier_init", "barrier_init_matched", "barrier_seed", "barrier_seed_matched"):
        assert result.metrics[name].value is None
        assert result.metrics[name].reason


def test_a_loss_that_overflows_is_none_with_the_reason():
    class Overflowing(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(192, 4)

        def forward(self, x):
            size = self.head.weight.norm()
            return self.head(x.flatten(1)) / torch.where(size > 1.2 * self.limit, 0.0, 1.0)

    torch.manual_seed(0)
    net, (x, y) = Overflowing(), images(16)
    net.limit = float(net.head.weight.detach().norm())
    rise = eqbench.probe("slices", net, x, y, directions=2, grid=5, points=5, eigenvectors=0)
    assert rise.metrics["slice_rise"].value is None
    assert "not finite" in rise.metrics["slice_rise"].reason
    assert not all(math.isfinite(v) for v in rise.curves["lines"][0]["losses"])


def test_orbits_are_flat_and_random_lines_of_their_lengths_are_not():
    x, y = images(64)
    net = trained(convolutional(), x, y).double()
    objective = Objective(net, [(x.double(), y)])
    orbits = along_orbits(objective)
    assert {"S1", "S8", "S10"} <= {one.family for one in orbits}
    measure = orbit_rise(objective, orbits)
    assert measure.value < 1e-12
    assert measure.null > 0.1
    assert orbit_rise(Objective(net.float(), [(x, y)]), along_orbits(Objective(net.float(), [(x, y)]))).value < 1e-5


def test_what_is_no_symmetry_is_not_flat(monkeypatch):
    """Mutation: the control of rescaling through a GELU, taken for an orbit."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.GELU(), nn.Linear(8, 4))
    x, y = images(64)
    objective = Objective(trained(net, x, y), [(x, y)])
    honest = along_orbits(objective)
    assert "C0" not in {one.family for one in honest}
    assert orbit_rise(objective, honest).value < 1e-7
    monkeypatch.setattr(gauge_orbits, "CONTROL", "S1")
    monkeypatch.setattr(gauge_orbits, "confirm", lambda exact, proposed: Verdict(list(proposed)))
    orbits = along_orbits(objective)
    assert "C0" in {one.family for one in orbits}
    assert orbit_rise(objective, orbits).value > 1e-4


def test_random_lines_stay_on_the_support():
    shift = torch.tensor([0.0, 1.0, -2.0, 0.0])
    u = on_support(shift, 0)
    assert u.norm() == pytest.approx(1)
    assert ((u != 0) == (shift != 0)).all()
