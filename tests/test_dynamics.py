"""The recorder of training against closed forms: identities, charges, the edge of stability, and that it disturbs nothing."""

import copy
import itertools
from contextlib import nullcontext

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from eqbench.curvature.objective import TrainingObjective
from eqbench.dynamics import Recorder, edge, recorder
from eqbench.dynamics.conservation import Conservation, doubles
from eqbench.dynamics.vertical import Vertical
from eqbench.metrics.symmetries import BUT_FOR_EPS, CONTROL
from eqbench.symmetries.attention import Pair

C, SIZE = 5, 12
EXACT = 1e-14  # residuals of identities in float64


def smoothed(logits, labels):
    return F.cross_entropy(logits, labels, label_smoothing=0.1)


def small(bend=nn.ReLU, dropout=0.0, eps=1e-5):
    """Batch norm read by a convolution without padding, a rescalable pair of convolutions, and a head."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, eps=eps), bend(), nn.Conv2d(6, 8, 3), bend(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Dropout(dropout), nn.Linear(8, C),
    )  # fmt: skip


def images(count=48, dtype=torch.float64, size=SIZE):
    source = torch.Generator().manual_seed(1)
    x = torch.rand(count, 3, size, size, generator=source, dtype=torch.float64).to(dtype)
    return x, torch.randint(C, (count,), generator=source)


def sgd(lr=0.1, decay=1e-2, momentum=0.0):
    return lambda net: torch.optim.SGD(net.parameters(), lr, momentum, weight_decay=decay, nesterov=momentum > 0)


def adamw(net):
    return torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=1e-2)


def train(net, optimiser=None, *, steps=100, every=10, dtype=torch.float64, loss=smoothed, size=SIZE, watched=None):
    """The recorder after some steps on random batches; `every` 0: none, and the same steps. Changes the network."""
    x, y = images(dtype=dtype, size=size)
    net = net.to(dtype).train()
    optimiser = (optimiser or sgd())(net)
    torch.manual_seed(2)
    looking = Recorder(net, optimiser, x[:16], y[:16], loss, every) if every else None
    for update in range(steps):
        rows = torch.randint(len(x), (16,))
        found = loss(net(x[rows]), y[rows])
        optimiser.zero_grad()
        found.backward()
        before = copy.deepcopy(dict(net.named_parameters())) if watched is not None else {}
        with looking.step(update, found.detach()) if looking else nullcontext():
            optimiser.step()
        if watched is not None:
            watched.append((before, {name: p.grad.clone() for name, p in net.named_parameters()}))
    return looking if looking else net


@pytest.fixture(scope="module")
def log():
    return train(small(), every=1).log


def test_identities_hold_to_rounding_in_every_step_of_descent(log):
    assert {"S1", "S8", "S9"} <= log["families"].keys()
    assert log["steps"]["update"] == list(range(100))
    for family, found in log["families"].items():
        assert len(found["identity"]) == 100
        if family not in (CONTROL, *BUT_FOR_EPS):
            assert max(found["identity"]) < EXACT, family
            assert max(found["residual"]) < EXACT, family
    assert max(log["families"]["S9"]["identity"]) > 1e-9  # exact but for eps, which is felt
    assert min(log["families"][CONTROL]["identity"]) > 1e-4


def test_scale_before_batch_norm_is_exact_without_its_eps():
    found = train(small(eps=1e-30), every=20).log["families"]["S9"]
    assert max(found["identity"] + found["residual"]) < EXACT


@pytest.mark.parametrize("decay", [0.0, 1e-2])
def test_charges_change_as_descent_with_coupled_decay_must(decay):
    """By hand, for both pairs together: dQ = -2 eta lam Q + eta^2/2 (g + lam th)'A(g + lam th)."""
    steps = []
    found = train(small(), sgd(0.1, decay), steps=20, every=1, watched=steps).log["families"]["S8"]

    def q(w):  # the kernel between them is written by one pair and read by the other
        written = sum(float(w[name].detach().square().sum()) for name in ("1.weight", "1.bias", "3.bias"))
        return (written - float(w["8.weight"].detach().square().sum())) / 2

    assert found["charge"] == pytest.approx([q(w) for w, _ in steps], rel=1e-12)
    for i, ((w, g), (w_next, _)) in enumerate(itertools.pairwise(steps)):
        square = 0.1**2 * q({name: g[name] + decay * w[name] for name in w})
        predicted = -2 * 0.1 * decay * q(w) + square
        assert q(w_next) - q(w) == pytest.approx(predicted, abs=1e-13)
        assert abs(predicted) > 1e-9
        assert found["change"][i] == pytest.approx(predicted, abs=1e-13)
        assert found["square"][i] == pytest.approx(square, abs=1e-13)
        assert found["decay"][i] == pytest.approx(-2 * 0.1 * decay * q(w), abs=1e-13)


def test_parts_of_a_change_are_what_they_say(log):
    for family, found in log["families"].items():
        if "change" not in found:
            continue
        for change, decay, square, remainder in zip(
            *(found[key] for key in ("change", "decay", "square", "remainder")), strict=True
        ):
            assert change == pytest.approx(decay + square + remainder, rel=1e-9, abs=1e-15), family
        if found["charge"][0] is not None and family not in BUT_FOR_EPS:
            for (before, after), change in zip(itertools.pairwise(found["charge"]), found["change"], strict=False):
                assert after - before == pytest.approx(change, abs=1e-12)


@pytest.mark.parametrize("optimiser", [adamw, sgd(momentum=0.9)], ids=["adamw", "momentum"])
def test_what_other_optimisers_break_is_the_remainder(optimiser):
    found = train(small(), optimiser, steps=20, every=4).log["families"]["S8"]
    assert max(found["identity"]) < EXACT
    assert min(map(abs, found["remainder"][1:])) > 1e-9
    assert max(found["residual"]) > 1e-6
    for change, *parts in zip(*(found[key] for key in ("change", "decay", "square", "remainder")), strict=True):
        assert change == pytest.approx(sum(parts), rel=1e-9)


def test_a_planted_asymmetry_is_detected():
    """Symmetries of the ReLU network are none of the same with GELU; the recorder finds none there, but the control."""
    honest, bent = train(small(), steps=30), train(small(nn.GELU), steps=30)
    assert "S8" not in bent.conservation.families
    assert {"S1", "S9"} <= bent.conservation.families.keys()
    net = small(nn.GELU)
    x, y = images()
    planted = Recorder(net.double().train(), sgd()(net), x[:16], y[:16], smoothed, 1)
    planted.conservation = honest.conservation
    smoothed(net(x), y).backward()
    with planted.step(0, 0.0):
        planted.optimizer.step()
    found = planted.log["families"]["S8"]
    assert found["identity"][0] > 1e4 * EXACT > 1e4 * max(honest.log["families"]["S8"]["identity"])
    assert found["residual"][0] > 1e4 * EXACT
    assert min(bent.log["families"][CONTROL]["identity"]) > 1e4 * EXACT


def test_transformers_obey_too():
    net = timm.create_model("test_vit", num_classes=C, img_size=16, patch_size=8, drop_path_rate=0.2)
    found = train(net, sgd(0.01), steps=12, every=4, size=16).log["families"]
    assert {"S1", "S2", "S3", "S4", "S6", "S7"} <= found.keys()
    for family, numbers in found.items():
        if family not in (CONTROL, *BUT_FOR_EPS):
            assert max(numbers["identity"] + numbers.get("residual", [])) < EXACT, family


def test_single_precision_has_its_own_floor():
    found = train(small(), dtype=torch.float32).log
    assert found["eps"] == torch.finfo(torch.float32).eps
    for family, numbers in found["families"].items():
        if family not in (CONTROL, *BUT_FOR_EPS):
            assert max(numbers["identity"]) < 1e-6, family
            assert max(numbers["residual"]) < 1e-3, family


@pytest.mark.parametrize("optimiser", [sgd(momentum=0.9), adamw], ids=["sgd", "adamw"])
def test_a_training_is_left_as_it_is(optimiser):
    """Weights, running statistics, the random state and what is left in the gradients: with and without a recorder."""
    ends = []
    for every in (0, 3):
        net = small(dropout=0.3)
        train(net, optimiser, steps=15, every=every, dtype=torch.float32)
        ends.append((net.state_dict(), [p.grad for p in net.parameters()], torch.get_rng_state(), net.training))
    (state, grads, draws, mode), (other, others, again, still) = ends
    assert all(torch.equal(state[name], other[name]) for name in state)
    assert all(torch.equal(g, h) for g, h in zip(grads, others, strict=True))
    assert torch.equal(draws, again)
    assert mode
    assert still


def test_it_goes_on_from_a_checkpoint(tmp_path):
    whole = train(small(), steps=20, every=5)
    x, y = images()
    net = small().double().train()
    optimiser = sgd()(net)
    first, again = (Recorder(net, optimiser, x[:16], y[:16], smoothed, 5) for _ in range(2))
    torch.manual_seed(2)
    for update in range(20):
        if update == 8:
            torch.save(first.state, tmp_path / "state.pt")
            again.load(torch.load(tmp_path / "state.pt", weights_only=True))
            first = again
        rows = torch.randint(len(x), (16,))
        optimiser.zero_grad()
        found = smoothed(net(x[rows]), y[rows])
        found.backward()
        with first.step(update, found.detach()):
            optimiser.step()
    assert first.log == whole.log


def dense(net, x, y):
    """Hessian and gradient of the loss in training mode, (n, n) and (n,), float64."""
    objective = TrainingObjective(net, [(x, y)], smoothed)

    def value(theta):
        return smoothed(objective.logits(x, theta), y)

    theta = objective.theta
    return torch.autograd.functional.hessian(value, theta), torch.autograd.functional.jacobian(value, theta)


def test_sharpness_and_alignment_against_the_dense_hessian():
    net, (x, y) = small().double().train(), (one[:16] for one in images())
    watching = train(net, steps=31, every=10)
    hessian, g = dense(net, x, y)
    for seed in range(4):  # each search goes on from the last
        found = watching.edge.measure(net, watching.instances, seed)
    values, vectors = torch.linalg.eigh(hessian)
    assert found["lambda_max"] == pytest.approx(float(values[-1]), rel=1e-3)
    assert found["residual"] <= 2 * edge.TOLERANCE * found["lambda_max"]
    assert found["curvature"] == pytest.approx(float(g @ hessian @ g / (g @ g)), rel=1e-6)
    theta = doubles(net.named_parameters())
    vertical = Vertical(watching.instances, theta)
    a = torch.stack([torch.cat([piece.flatten() for piece in column.values()]) for column in columns(vertical)], 1)
    off = torch.eye(len(g)) - a @ torch.linalg.pinv(a)
    q = off.double() @ vectors[:, -1]
    assert found["alignment"] == pytest.approx(float((q @ g).abs() / g.norm() / q.norm()), abs=0.01)
    assert float(q.norm()) < 1 - 1e-4  # the projection is felt


def columns(vertical):
    """K of each single coefficient, by name with zeros."""
    for one in vertical.instances:
        for j in range(one.unit.numel()):
            c = torch.zeros(one.unit.numel(), dtype=torch.float64)
            c[j] = 1
            k = one.direction(vertical.theta, c.view(one.unit.shape))
            yield {name: k.get(name, torch.zeros_like(w)) for name, w in vertical.theta.items()}


@pytest.mark.parametrize("name", ["convolutions", "attention"])
def test_what_is_vertical_is_removed(name):
    """Against dense least squares: also with kernels of several taps, and bases of heads."""
    torch.manual_seed(0)
    vit = timm.models.vision_transformer.VisionTransformer
    net = small() if name == "convolutions" else vit(16, 8, num_classes=C, embed_dim=16, depth=1, num_heads=2)
    x, y = images(8, size=SIZE if name == "convolutions" else 16)
    objective = TrainingObjective(net.double(), [(x, y)], smoothed)
    every = [one.origin for some in Conservation(objective).families.values() for one in some if one.origin is not None]
    assert any(isinstance(one, Pair) for one in every) == (name == "attention")
    vertical = Vertical(every, doubles(net.named_parameters()))
    a = torch.stack([torch.cat([piece.flatten() for piece in column.values()]) for column in columns(vertical)], 1)
    v = torch.randn(len(a), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    best = v - a @ torch.linalg.lstsq(a, v, driver="gelsd").solution
    assert (vertical.pulled(v) - a.T @ v).norm() < 1e-10 * v.norm()
    assert (vertical.removed(v, precision=1e-8) - best).norm() < 1e-5 * v.norm()
    assert (v - best).norm() > 0.05 * v.norm()
    assert (vertical.removed(v) - best).norm() < 0.03 * (v - best).norm()


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_thresholds_are_where_quadratics_diverge(momentum, nesterov):
    net = nn.Linear(1, 1, bias=False).double()
    optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum, nesterov=nesterov)
    looking = Recorder.__new__(Recorder)
    looking.optimizer = optimiser
    threshold = looking._optimiser()["threshold"]
    for share, diverges in ((0.98, False), (1.02, True)):
        optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum, nesterov=nesterov)
        nn.init.ones_(net.weight)
        for _ in range(3000):
            optimiser.zero_grad()
            (share * threshold * net.weight.square() / 2).sum().backward()
            optimiser.step()
        assert (float(net.weight.detach().abs().max()) > 1) == diverges


def test_adaptive_optimisers_have_no_such_threshold():
    found = train(small(), adamw, steps=3, every=1).log
    assert found["momentum"] is None
    assert found["steps"]["threshold"] == [None] * 3


def test_a_loss_without_second_derivatives_costs_the_sharpness_alone(monkeypatch):
    def fail(*_):
        raise recorder.Unsupported("no second derivative: made up")

    monkeypatch.setattr(edge.Hessian, "__matmul__", fail)
    found = train(small(), steps=3, every=1).log
    assert found["reason"] == "no second derivative: made up"
    assert found["steps"]["lambda_max"] == [None] * 3
    assert max(found["families"]["S8"]["identity"]) < EXACT


def test_few_products_follow_the_top():
    spent = []
    product = edge.Hessian.__matmul__

    def counted(self, v):
        spent.append(1)
        return product(self, v)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edge.Hessian, "__matmul__", counted)
        watching = train(small(), steps=1, every=1)
        first = len(spent)
        net = small().double()
        for _ in range(3):
            before = len(spent)
            watching.edge.measure(net, watching.instances, 0)
    assert first <= edge.COLD + 2
    assert len(spent) - before <= edge.WARM + 2


def test_the_watched_loss_has_the_same_dropout_at_every_step():
    objective = TrainingObjective(small(dropout=0.5).double(), [images(8)], smoothed)
    x, _ = objective.batches[0]
    first = objective.logits(x)
    torch.rand(3)  # training goes on drawing
    assert torch.equal(objective.logits(x), first)
    assert not torch.equal(TrainingObjective(small().double(), [images(8)], smoothed).logits(x), first)
