"""The Hessian engine, Lanczos and the trace against dense float64 references, closed forms and curvlinops."""

import math

import pytest
import timm
import torch
from curvlinops import HessianLinearOperator
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss

import eqbench
from eqbench import functional
from eqbench.curvature import guard as guarding
from eqbench.curvature.guard import guard
from eqbench.curvature.hessian import Hessian
from eqbench.curvature.lanczos import extreme_eigenpairs
from eqbench.curvature.objective import Objective, prepare
from eqbench.curvature.trace import deflated_trace
from eqbench.errors import Failed, Unsupported
from eqbench.probes import spectrum
from eqbench.probes.landscape import objectives as landscape
from eqbench.probes.notebook import tensor_subject
from eqbench.results import Status
from eqbench.schema import Spectrum


class Attention(nn.Module):
    """One head over the 16 pixels of a 4 x 4 map, with a layer norm before it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.head = nn.LayerNorm(3), nn.Linear(3, 12), nn.Linear(4, 4)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x.flatten(2).mT)).split(4, -1)
        return self.head(nn.functional.scaled_dot_product_attention(q, k, v).mean(1))


CASES = {
    "mlp-layernorm": lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 7), nn.LayerNorm(7), nn.GELU(), nn.Linear(7, 4)),
    "conv-batchnorm-relu": lambda: nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)
    ),
    "attention": Attention,
}


def build(name: str, images: int = 20):
    torch.manual_seed(0)
    module = CASES[name]().double().eval()
    return module, torch.rand(images, 3, 4, 4).double(), torch.randint(4, (images,))


class PlainLayerNorm(nn.Module):
    """The same function from elementary operations."""

    def __init__(self, layer):
        super().__init__()
        self.weight, self.bias, self.eps = layer.weight, layer.bias, layer.eps

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        return centred * (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight + self.bias


def plain_layer_norms(module):
    """A copy for references that batch second derivatives (vmap): torch 2.15's are wrong for its own layer norm."""
    module = prepare(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.LayerNorm):
                setattr(parent, name, PlainLayerNorm(child))
    return module


def dense(module, x, y, loss=cross_entropy):
    """The Hessian by torch.func.hessian, (n, n)."""
    module = plain_layer_norms(module)
    names = [n for n, _ in module.named_parameters()]
    sizes = [p.numel() for p in module.parameters()]
    shapes = [p.shape for p in module.parameters()]
    theta = torch.cat([p.detach().reshape(-1) for p in module.parameters()])

    def value(theta):
        pieces = [t.view(s) for t, s in zip(theta.split(sizes), shapes, strict=True)]
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return loss(functional_call(module, dict(zip(names, pieces, strict=True)), (x,)), y)

    return torch.func.hessian(value)(theta)


class Dense:
    """A matrix that counts its products."""

    dtype, device = torch.float64, torch.device("cpu")

    def __init__(self, matrix):
        self.matrix, self.size, self.products = matrix, len(matrix), 0

    def __matmul__(self, v):
        self.products += 1
        return self.matrix @ v


@pytest.mark.parametrize("name", CASES)
def test_the_reference_agrees_with_finite_differences(name):
    module, x, y = build(name)
    matrix = dense(module, x, y)
    torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=1e-12)
    v, step, objective = torch.randn(len(matrix)).double(), 1e-5, Objective(module, [(x, y)])
    gradients = [objective.gradient(objective.theta + sign * step * v)[1] for sign in (1, -1)]
    difference = (gradients[0] - gradients[1]) / (2 * step)
    assert (difference - matrix @ v).norm() < 1e-6 * difference.norm()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("cuts", [[20], [13, 7], [16, 2, 2]])
def test_products_equal_the_dense_hessian(name, cuts):
    """For one cached batch and for ragged ones: size-weighted, so the cut does not matter."""
    module, x, y = build(name)
    matrix = dense(module, x, y)
    hessian = Hessian(Objective(module, zip(x.split(cuts), y.split(cuts), strict=True)))
    for _ in range(3):
        v = torch.randn(hessian.size).double()
        torch.testing.assert_close(hessian @ v, matrix @ v, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(hessian.forward_over_reverse(v), matrix @ v, rtol=1e-10, atol=1e-12)
    value, gradient = hessian.objective.gradient()
    loss = cross_entropy(module(x), y)
    assert value == pytest.approx(float(loss.detach()))
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(module.parameters()))])
    torch.testing.assert_close(gradient, expected)


def test_equal_weights_for_unequal_batches_are_noticed():
    """Mutation: 1 / number of batches in place of n_b / N."""
    module, x, y = build("mlp-layernorm")
    hessian = Hessian(Objective(module, zip(x.split([18, 2]), y.split([18, 2]), strict=True)))
    parts = [Hessian(Objective(module, [(a, b)])) for a, b in hessian.objective.batches]
    v = torch.randn(hessian.size).double()
    wrong = sum(part @ v for part in parts) / len(parts)
    assert (wrong - hessian @ v).norm() > 1e-2 * wrong.norm()


@pytest.mark.parametrize("name", CASES)
def test_spectrum_equals_the_dense_one(name):
    module, x, y = build(name)
    values = torch.linalg.eigvalsh(dense(module, x, y))
    hessian = Hessian(Objective(module, [(x, y)]))
    pairs = extreme_eigenpairs(hessian, 5, tolerance=1e-10, max_products=hessian.size)
    assert pairs.converged
    expected = torch.cat([values.flip(0)[:5], values[:1]])
    torch.testing.assert_close(pairs.values, expected, rtol=1e-8, atol=1e-8)


def test_softmax_regression_in_closed_form():
    """H = E (diag p - pp') (x) xx'."""
    torch.manual_seed(0)
    x, y = torch.randn(30, 6).double(), torch.randint(3, (30,))
    linear = nn.Linear(6, 3, bias=False).double()
    p = linear(x).softmax(1).detach()
    blocks = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    matrix = torch.einsum("bij,bk,bl->ikjl", blocks, x, x).reshape(18, 18) / 30
    v = torch.randn(18).double()
    torch.testing.assert_close(Hessian(Objective(linear, [(x, y)])) @ v, matrix @ v)
    linear = nn.Linear(6, 3, bias=False).double()
    square = torch.kron(torch.eye(3).double(), 2 * x.T @ x / 90)  # mse averages over outputs, too
    torch.testing.assert_close(Hessian(Objective(linear, [(x, torch.randn(30, 3).double())], mse_loss)) @ v, square @ v)


@pytest.mark.parametrize(("name", "options"), [("test_vit", {"img_size": 32}), ("test_resnet", {})])
def test_products_equal_curvlinops_on_timm_models(name, options):
    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=10, **options).eval()
    x, y = torch.rand(16, 3, 32, 32), torch.randint(10, (16,))
    ours = Hessian(Objective(module, zip(x.split(8), y.split(8), strict=True)))
    reference = plain_layer_norms(module)
    parameters = [p for p in reference.parameters() if p.requires_grad]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        theirs = HessianLinearOperator(
            reference, nn.CrossEntropyLoss(), parameters, list(zip(x.split(8), y.split(8), strict=True))
        )
        for _ in range(2):
            v = torch.randn(ours.size)
            v /= v.norm()
            found, expected = ours @ v, theirs @ v
            assert (found - expected).norm() <= 1e-5 * expected.norm()


class ReverseOverForward(Hessian):
    """Mutation: grad(jvp(f)), which is silently wrong for layer norm (pytorch#196700)."""

    def __matmul__(self, v):
        objective = self.objective
        (x, y), *_ = objective.batches

        def slope(parameters):
            def loss(p):
                return objective.loss(functional_call(objective.module, p, (x,)), y)

            return torch.func.jvp(loss, (parameters,), (objective.named(v),))[1]

        gradient = torch.func.grad(slope)(objective.named(objective.theta))
        return objective.flat(gradient[name] for name in objective.names)


def test_reverse_over_forward_is_caught(monkeypatch):
    module, x, y = build("mlp-layernorm")
    matrix, v = dense(module, x, y), torch.randn(sum(p.numel() for p in module.parameters())).double()
    wrong = ReverseOverForward(Objective(module, [(x, y)]))
    error = float((wrong @ v - matrix @ v).norm() / (matrix @ v).norm())
    if error < 1e-8:
        pytest.skip("this torch computes grad(jvp(f)) of a layer norm rightly: nothing to catch")
    monkeypatch.setattr(guarding, "Hessian", ReverseOverForward)
    with pytest.raises(Failed, match="mode agreement"):
        guard(wrong.objective)


def test_a_detached_branch_is_caught():
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(48, 6), nn.Linear(6, 4)

        def forward(self, x):
            h = self.first(x.flatten(1)).tanh()
            return self.second(h + h.detach())

    torch.manual_seed(0)
    objective = Objective(Detached(), [(torch.rand(8, 3, 4, 4), torch.randint(4, (8,)))])
    with pytest.raises(Failed, match="directional derivative"):
        guard(objective)


class Shared(nn.Module):
    """One layer by two names, as in CoaT, and one weight of two layers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(48, 6)
        self.one = self.same = nn.Linear(6, 6)
        self.tied, self.last = nn.Linear(6, 6), nn.Linear(6, 4)
        self.tied.weight = self.one.weight

    def forward(self, x):
        h = self.one(self.first(x.flatten(1)).tanh()).tanh()
        return self.last(self.tied(self.same(h).tanh()).tanh())


def test_a_layer_of_two_names_keeps_its_weights(monkeypatch):
    """torch.func.functional_call puts others in their place (pytorch#164759), and the guard sees it."""
    torch.manual_seed(0)
    module, x, y = Shared().double(), torch.rand(8, 3, 4, 4).double(), torch.randint(4, (8,))
    objective = Objective(module, [(x, y)])
    v, step = torch.randn(objective.size).double(), 1e-5
    gradients = [objective.gradient(objective.theta + sign * step * v)[1] for sign in (1, -1)]
    difference = (gradients[0] - gradients[1]) / (2 * step)
    assert (difference - Hessian(objective) @ v).norm() < 1e-8 * difference.norm()
    guard(objective)
    monkeypatch.setattr(functional, "call", lambda module, tensors, x: functional_call(module, tensors, (x,)))
    with pytest.raises(Failed, match="curvature check"):
        guard(objective)


@pytest.mark.parametrize("name", CASES)
def test_the_guard_lets_right_arithmetic_pass(name):
    module, x, y = build(name)
    assert max(guard(Objective(module.float(), [(x.float(), y)])).values()) < 1e-6


def test_one_image_batches_are_refused():
    """A CPU batch-norm backward is wrong for them."""
    module, x, y = build("mlp-layernorm")
    with pytest.raises(Unsupported, match="at least 2"):
        Objective(module, zip(x.split([19, 1]), y.split([19, 1]), strict=True))
    subject = tensor_subject(module, x, y)
    assert [len(a) for a, _ in landscape.objective_of(subject, 19).batches] == [20]


def test_hard_sigmoid_becomes_twice_differentiable():
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.Hardsigmoid(), nn.Linear(5, 4))
    x, y = torch.rand(8, 3, 4, 4), torch.randint(4, (8,))
    assert torch.equal(prepare(module)(x), module(x))
    guard(Objective(module, [(x, y)]))


def _spectrum(n: int, seed: int = 0):
    """A few outliers, a bulk, a negative edge, in a random basis."""
    generator = torch.Generator().manual_seed(seed)
    bulk = torch.randn(n - 7, generator=generator).double() * 0.05
    outliers = torch.tensor([20.0, 11.0, 7.0, 5.0, 3.0, 2.0, -1.5]).double()
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator).double())
    return (q * torch.cat([outliers, bulk])) @ q.T


def test_lanczos_finds_the_ends_in_few_products():
    operator = Dense(_spectrum(400))
    pairs = extreme_eigenpairs(operator, 5, tolerance=1e-3)
    assert pairs.converged
    assert operator.products <= 36
    torch.testing.assert_close(
        pairs.values, torch.tensor([20.0, 11.0, 7.0, 5.0, 3.0, -1.5]).double(), rtol=1e-5, atol=0
    )
    q = pairs.vectors
    torch.testing.assert_close(q.T @ q, torch.eye(6).double(), atol=1e-10, rtol=0)


def test_without_reorthogonalisation_ghosts_appear(monkeypatch):
    """Mutation: a basis that loses orthogonality reports copies of eigenvalues that the matrix has once."""
    operator = Dense(_spectrum(400).float().double())
    operator.dtype = torch.float32
    operator.matrix = operator.matrix.float()
    steps = {"tolerance": 1e-12, "max_products": 120}
    honest = extreme_eigenpairs(operator, 3, **steps).values
    torch.testing.assert_close(honest[:3], torch.tensor([20.0, 11.0, 7.0]).double(), rtol=1e-4, atol=0)
    monkeypatch.setattr("eqbench.curvature.lanczos.GRAM_SCHMIDT_PASSES", 0)
    ghosts = extreme_eigenpairs(operator, 3, **steps).values
    assert not torch.allclose(ghosts[:3], honest[:3], rtol=1e-2)


def test_what_has_not_converged_says_so():
    torch.manual_seed(0)
    matrix = torch.randn(300, 300).double()
    operator = Dense(matrix + matrix.T)  # a semicircle: no gap at its edge
    pairs = extreme_eigenpairs(operator, 5, tolerance=1e-6, max_products=20)
    assert not pairs.converged
    values = torch.linalg.eigvalsh(operator.matrix)
    for value, residual in zip(pairs.values, pairs.residuals, strict=True):
        assert (values - value).abs().min() <= residual  # the interval of an eigenvalue holds one


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_tiny_operators(n):
    matrix = torch.diag(torch.arange(1.0, n + 1)).double()
    pairs = extreme_eigenpairs(Dense(matrix), 5, tolerance=1e-8)
    torch.testing.assert_close(pairs.values, torch.arange(n, 0, -1).double())


def test_a_multiple_eigenvalue_is_seen_where_the_space_is_small():
    pairs = extreme_eigenpairs(Dense(torch.diag(torch.tensor([3.0, 3.0, 3.0, 1.0]).double())), 3, tolerance=1e-8)
    torch.testing.assert_close(pairs.values, torch.tensor([3.0, 3.0, 3.0, 1.0]).double())


def test_trace_interval_covers():
    """The claimed 95 % interval holds the trace in 92-98 % of 200 seeds; leaving the deflated part out never does."""
    operator = Dense(_spectrum(300))
    pairs = extreme_eigenpairs(operator, 5)
    truth = float(operator.matrix.trace())
    estimates = [deflated_trace(operator, pairs.values, pairs.vectors, 10, seed) for seed in range(200)]
    assert 0.92 <= sum(e.lo <= truth <= e.hi for e in estimates) / 200 <= 0.98
    assert sum(e.value for e in estimates) / 200 == pytest.approx(truth, rel=0.01)
    missing = float(pairs.values.sum())
    assert not any(e.lo - missing <= truth <= e.hi - missing for e in estimates)


def test_probe_against_the_dense_hessian():
    module, x, y = build("conv-batchnorm-relu")
    values = torch.linalg.eigvalsh(dense(module, x, y))
    result = eqbench.probe("spectrum", module, x, y, tolerance=1e-8, max_products=200)
    assert result.status is Status.ok
    metrics = result.metrics
    assert metrics["lambda_max"].value == pytest.approx(float(values[-1]), rel=1e-8)
    assert metrics["lambda_min"].value == pytest.approx(float(values[0]), abs=1e-8)
    assert metrics["trace"].lo <= float(values.sum()) <= metrics["trace"].hi
    assert metrics["loss"].value == pytest.approx(float(cross_entropy(module(x), y).detach()))
    assert metrics["loss"].null == pytest.approx(math.log(4))
    assert result.curves["eigenvalues"] == pytest.approx(values.flip(0)[:10].tolist(), rel=1e-4)
    assert result.cost["hvps"] > 0


def test_probe_without_derivatives_is_skipped():
    module, x, y = build("mlp-layernorm")
    features = eqbench.probe("spectrum", nn.Sequential(nn.Conv2d(3, 4, 3).double()), x, y)
    assert (features.status, "expected logits" in features.reason) == (Status.skipped, True)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, x):
            return nn.functional.hardsigmoid(self.inner(x))

    result = eqbench.probe("spectrum", Net(), x, y)
    assert result.status is Status.skipped
    assert "hardsigmoid_backward" in result.reason
    assert result.metrics == {}


def test_micro_batches_do_not_change_the_answer():
    module, x, y = build("conv-batchnorm-relu")
    conf = Spectrum(images=20, top=2, tolerance=1e-8, trace_products=5, density_probes=3, max_products=100)
    whole = spectrum.run(tensor_subject(module, x, y), None, None, conf).metrics
    conf.micro_batch = 6
    parts = spectrum.run(tensor_subject(module, x, y), None, None, conf).metrics
    for name, measure in whole.items():
        if measure.value is None:
            assert parts[name].reason == measure.reason
        else:
            assert parts[name].value == pytest.approx(measure.value, rel=1e-7), name
