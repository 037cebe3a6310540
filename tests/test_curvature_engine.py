"""The engine's parts against dense references, each with a mutation that a test catches: products, guard, restarts, density."""

import math
from functools import partial

import pytest
import torch
from curvlinops import GGNLinearOperator
from test_curvature import CASES, Dense, _spectrum, build, dense, plain_layer_norms
from torch import nn
from torch.nn.functional import conv2d, mse_loss

import eqbench
from eqbench import results
from eqbench.curvature import convolution, density, hessian
from eqbench.curvature import guard as guarding
from eqbench.curvature.density import combined, rules, spectral_sum
from eqbench.curvature.gauss_newton import GaussNewton
from eqbench.curvature.guard import guard, silent
from eqbench.curvature.hessian import Hessian
from eqbench.curvature.lanczos import extreme_eigenpairs
from eqbench.curvature.objective import Objective, prepare
from eqbench.curvature.trace import deflated_trace, krylov_trace, quadratic_trace
from eqbench.errors import Failed
from eqbench.results import Status


def jacobian(module, x):
    """df / dtheta, (B, C, n)."""
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        parts = torch.func.jacrev(lambda p: torch.func.functional_call(module, p, (x,)))(parameters)
    return torch.cat([part.flatten(2) for part in parts.values()], 2)


def dense_gauss_newton(module, x):
    """mean_x J'(diag p - pp')J."""
    j, p = jacobian(prepare(module), x), module(x).softmax(1).detach()
    return torch.einsum("bci,bcd,bdj->ij", j, torch.diag_embed(p) - p[:, :, None] * p[:, None], j) / len(x)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("cuts", [[20], [13, 7]])
def test_gauss_newton_equals_the_dense_one_and_needs_no_labels(name, cuts):
    module, x, y = build(name)
    matrix = dense_gauss_newton(module, x)
    for labels in (y, (y + 1) % 4):
        product = GaussNewton(Objective(module, zip(x.split(cuts), labels.split(cuts), strict=True)))
        v = torch.randn(product.size).double()
        torch.testing.assert_close(product @ v, matrix @ v, rtol=1e-10, atol=1e-12)
        assert product.quadratic(v) == pytest.approx(float(v @ matrix @ v), rel=1e-10)


def test_gauss_newton_equals_curvlinops():
    module, x, y = build("conv-batchnorm-relu")
    reference = plain_layer_norms(module)
    theirs = GGNLinearOperator(
        reference, nn.CrossEntropyLoss(), list(reference.parameters()), [(x[:13], y[:13]), (x[13:], y[13:])]
    )
    ours = GaussNewton(Objective(module, [(x[:13], y[:13]), (x[13:], y[13:])]))
    v = torch.randn(ours.size).double()
    torch.testing.assert_close(ours @ v, theirs @ v, rtol=1e-8, atol=1e-10)


def test_hessian_becomes_gauss_newton_as_the_fit_interpolates():
    """H - G = sum dl/df d2f: it vanishes with the residuals, whatever the network."""
    module, x, _ = build("mlp-layernorm")
    targets, noise, ratios = module(x).detach(), torch.randn(20, 4).double(), []
    for size in (1.0, 0.1, 0.01):
        objective = Objective(module, [(x, targets + size * noise)], mse_loss)
        v = torch.randn(objective.size).double()
        h, g = Hessian(objective) @ v, GaussNewton(objective) @ v
        ratios.append(float((h - g).norm() / g.norm()))
    assert ratios[2] < 0.02 * ratios[0]
    assert ratios[2] == pytest.approx(0.1 * ratios[1], rel=0.5)


def test_deep_linear_network_in_closed_form():
    """f = w2 w1 x with one hidden unit: d2L/dw1dw2 = 2 mean(xx') w1 w2 + 2 mean((f - y) x)."""
    x, y = torch.randn(40, 1).double(), torch.randn(40, 1).double()
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    a, b = net[0].weight.item(), net[1].weight.item()
    xx, xy = float((x * x).mean()), float((x * y).mean())
    cross = 2 * (2 * a * b * xx - xy)
    matrix = torch.tensor([[2 * b * b * xx, cross], [cross, 2 * a * a * xx]]).double()
    operator = Hessian(Objective(net, [(x, y)], mse_loss))
    torch.testing.assert_close(torch.stack([operator @ e for e in torch.eye(2).double()]), matrix)


CONVOLUTIONS = {
    "plain": {"padding": 1},
    "strided": {"stride": 2, "padding": 1},
    "dilated": {"dilation": 2},
    "grouped": {"groups": 2, "padding": 1},
    "depthwise, wide": {"groups": 4, "padding": 2, "stride": (2, 1)},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("images", [2, 400])  # torch's own loop over groups takes over above 1500 positions
def test_native_convolutions_differentiate_twice_as_torch_does(name, images):
    torch.manual_seed(0)
    options = CONVOLUTIONS[name]
    groups, k = options.get("groups", 1), 5 if "wide" in name else 3
    x = torch.randn(images, 4, 6, 7).double().requires_grad_()
    w, b = torch.randn(8, 4 // groups, k, k).double().requires_grad_(), torch.randn(8).double().requires_grad_()
    cotangent = None

    def second(inputs):
        nonlocal cotangent
        y = conv2d(x, w, b, **options)
        cotangent = torch.randn_like(y) if cotangent is None else cotangent
        first = torch.autograd.grad((y.sin() * cotangent).sum(), inputs, create_graph=True)
        vectors = [torch.linspace(-1, 1, g.numel()).double().view_as(g) for g in first]
        return torch.autograd.grad(first, [x, w, b], vectors, allow_unused=True, materialize_grads=True)

    for inputs in ([x, w, b], [w], [w, b], [b], [x]):
        expected = second(inputs)
        with convolution.NativeConvolutions():
            found = second(inputs)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_wrong_convolution_is_caught(monkeypatch):
    """Mutation: the term of the kernel's own second derivative is left out."""
    right = convolution._gradients

    def wrong(g, x, w, settings, mask):
        return [None if mask == [False, True, False] else part for part in right(g, x, w, settings, mask)]

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 2), nn.GELU(), nn.Flatten(), nn.Linear(4, 4))
    objective = Objective(net, [(torch.rand(8, 3, 4, 4), torch.randint(4, (8,)))])
    guard(objective)
    monkeypatch.setattr(convolution, "_gradients", wrong)
    with pytest.raises(Failed, match=r"mode agreement|self-adjointness"):
        guard(objective)


@pytest.mark.parametrize("mode", hessian.MODES)
def test_many_batches_by_either_mode(mode):
    module, x, y = build("attention")
    matrix, v = dense(module, x, y), torch.randn(sum(p.numel() for p in module.parameters())).double()
    product = Hessian(Objective(module, zip(x.split(5), y.split(5), strict=True)))
    assert product.mode == ""
    product.mode = mode
    torch.testing.assert_close(product @ v, matrix @ v, rtol=1e-10, atol=1e-12)
    measured = Hessian(product.objective)
    torch.testing.assert_close(measured @ v, matrix @ v, rtol=1e-10, atol=1e-12)
    assert measured.mode in hessian.MODES


class Cached(nn.Module):
    """A bias that evaluation reads from a cache, as timm's LeViT does; `stale`: one that no call empties."""

    def __init__(self, stale):
        super().__init__()
        self.linear, self.bias, self.stale, self.cache = nn.Linear(48, 4), nn.Parameter(torch.randn(4)), stale, None

    def train(self, mode=True):
        if mode and not self.stale:
            self.cache = None
        return super().train(mode)

    def forward(self, x):
        if self.training:
            return self.linear(x.flatten(1)).tanh() + self.bias
        self.cache = self.bias.detach() * 1 if self.stale and self.cache is None else self.cache
        return self.linear(x.flatten(1)).tanh() + (self.bias if self.cache is None else self.cache)


def test_a_stale_cache_is_caught():
    x, y = torch.rand(8, 3, 4, 4), torch.randint(4, (8,))
    guard(Objective(Cached(stale=False), [(x, y)]))
    with pytest.raises(Failed, match="'bias', which gets no gradient"):
        guard(Objective(Cached(stale=True), [(x, y)]))


def test_parameters_without_effect_pass():
    """Unused ones, and the structural null of a key bias, which softmax takes out."""

    class Keys(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.unused = (nn.Linear(3, 4) for _ in range(4))

        def forward(self, x):
            tokens = x.flatten(2).mT
            return nn.functional.scaled_dot_product_attention(self.q(tokens), self.k(tokens), self.v(tokens)).mean(1)

    torch.manual_seed(0)
    objective = Objective(Keys(), [(torch.rand(8, 3, 4, 4), torch.randint(4, (8,)))])
    assert max(guard(objective).values()) < 1e-6
    assert (
        {"unused.weight", "unused.bias"}
        <= set(silent(objective.double()))
        <= {"unused.weight", "unused.bias", "k.bias"}
    )


@pytest.mark.parametrize("name", CASES)
def test_the_guard_of_gauss_newton(name, monkeypatch):
    module, x, y = build(name)
    assert max(guard(Objective(module, [(x, y)]), second=False).values()) < 1e-6

    class Wrong(GaussNewton):
        """Mutation: the forward derivative of another function."""

        def pushed(self, x, v):
            return super().pushed(x, 1.001 * v)

    monkeypatch.setattr(guarding, "GaussNewton", Wrong)
    with pytest.raises(Failed, match="'adjointness'"):
        guard(Objective(module, [(x, y)]), second=False)


def test_rounding_to_tf32_is_caught():
    """Mutation: products in 10-bit mantissas. Eigenpairs found with them fail a check by products in full precision."""

    class Rounded(Dense):
        def __matmul__(self, v):
            w = super().__matmul__(v).float()
            return (w.view(torch.int32) & ~0x1FFF).view(torch.float32).double()

    matrix = _spectrum(400)
    loose = extreme_eigenpairs(Rounded(matrix), 5, tolerance=1e-6, max_products=60)
    assert not loose.converged
    exact = matrix @ loose.vectors - loose.vectors * loose.values
    assert (exact.norm(dim=0) > 1e-6 * loose.values.abs()).any()
    assert extreme_eigenpairs(Dense(matrix), 5, tolerance=1e-6, max_products=60).converged


def test_thick_restarts_find_the_same():
    matrix = torch.diag(torch.linspace(-1, 1, 400).double() ** 3)
    whole = extreme_eigenpairs(Dense(matrix), 5, tolerance=1e-8, max_products=400)
    short = extreme_eigenpairs(Dense(matrix), 5, tolerance=1e-8, max_products=400, basis_bytes=20 * 400 * 8)
    assert short.converged
    torch.testing.assert_close(short.values, whole.values)
    assert 20 < whole.products < short.products < 3 * whole.products


def test_blocks_see_multiple_eigenvalues():
    """A mirror-symmetric network can have pairs of equal curvatures: one starting vector sees one of each."""
    values = torch.cat([torch.tensor([5.0, 5.0, 4.0, 4.0, 3.0, 3.0]), torch.linspace(-1, 1, 294)]).double()
    find = partial(extreme_eigenpairs, Dense(torch.diag(values)), 6, smallest=0, tolerance=1e-2, max_products=60)
    torch.testing.assert_close(find(block=2).values, values[:6], rtol=1e-3, atol=0)
    assert float(find(block=1, max_products=20).values[1]) == pytest.approx(4, rel=1e-2)


def test_a_good_start_saves_products():
    matrix = _spectrum(400)
    whole = extreme_eigenpairs(Dense(matrix), 1, smallest=0, tolerance=1e-6)
    near = extreme_eigenpairs(
        Dense(matrix + 0.01 * _spectrum(400, 1)), 1, smallest=0, tolerance=1e-2, start=whole.vectors[:, 0]
    )
    assert near.products < whole.products


def test_low_rank_stops_when_nothing_is_left():
    operator = Dense(torch.diag(torch.cat([torch.tensor([3.0, 2.0, 1.0]), torch.zeros(297)]).double()))
    pairs = extreme_eigenpairs(operator, 5)
    torch.testing.assert_close(pairs.values, torch.tensor([3.0, 2.0, 1.0, 0.0, 0.0, 0.0]).double(), atol=1e-12, rtol=0)
    assert operator.products < 15


@pytest.mark.parametrize("name", CASES)
def test_quadrature_moments_equal_the_dense_ones(name):
    """sum_j w_j nodes_j^q = v'H^q v for q <= 2m - 1: found eigenvectors exactly, the rest by its rules."""
    module, x, y = build(name)
    matrix, m = dense(module, x, y), 5
    pairs = extreme_eigenpairs(Dense(matrix), 3, tolerance=1e-12, max_products=len(matrix))
    q = torch.linalg.qr(pairs.vectors)[0]
    rest = matrix - q @ (q.T @ matrix @ q) @ q.T
    for rule, v in zip(rules(Dense(matrix), pairs.vectors, 2, m), _signs(len(matrix), q, 2), strict=True):
        power, scale = v.clone(), float(matrix.norm())
        for degree in range(2 * m):
            expected = float(v @ power)
            found = rule.mass * float(rule.weights @ rule.nodes**degree)
            assert found == pytest.approx(expected, rel=1e-8, abs=1e-10 * scale**degree * rule.mass)
            power = rest @ power
        assert rule.square == pytest.approx(float((rest @ v).square().sum()), rel=1e-8)


def _signs(n, q, count):
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randint(2, (n,), generator=generator).mul(2).sub(1).double() for _ in range(count)]
    return [v - q @ (q.T @ v) for v in vectors]


def test_weights_that_are_not_the_first_row_are_caught(monkeypatch):
    """Mutation: whole squared eigenvectors for weights (as in a published tool): they no longer sum to one."""
    operator = Dense(_spectrum(200))
    none = torch.zeros(200, 0).double()
    right = rules(operator, none, 1, 8)[0]
    assert float(right.weights.sum()) == pytest.approx(1, abs=1e-12)
    eigh = torch.linalg.eigh

    def last_row(matrix):
        values, s = eigh(matrix)
        return values, s.flip(0)

    monkeypatch.setattr(density.torch.linalg, "eigh", last_row)
    wrong = rules(operator, none, 1, 8)[0]
    v = _signs(200, none, 1)[0]
    moment = float(v @ operator.matrix @ v)
    assert right.mass * float(right.weights @ right.nodes) == pytest.approx(moment, rel=1e-9)
    assert wrong.mass * float(wrong.weights @ wrong.nodes) != pytest.approx(moment, rel=1e-2)


def test_density_is_near_the_dense_one():
    """Wasserstein-1 distance to all eigenvalues, as a share of their spread; without deflation it is larger."""
    module, x, y = build("mlp-layernorm", 60)
    matrix = dense(module, x, y)
    values = torch.linalg.eigvalsh(matrix)
    pairs = extreme_eigenpairs(Dense(matrix), 10, tolerance=1e-8, max_products=len(values))

    def distance(pairs):
        found = rules(Dense(matrix), pairs.vectors if pairs else torch.zeros(len(values), 0).double(), 8, 20)
        grid = torch.linspace(float(values[0]), float(values[-1]), 4000).double()
        steps = torch.tensor(
            [
                spectral_sum(pairs.values if pairs else values[:0], found, lambda t, g=g: (t <= g).double()).value
                for g in grid
            ]
        )
        cumulative = torch.searchsorted(values, grid, right=True)
        return float((steps / len(values) - cumulative / len(values)).abs().mean())

    assert distance(pairs) < 0.01


def test_intervals_of_spectral_sums_cover():
    """Of the norm and of a ratio of sums (jackknife): 92-98 % of 200 seeds; half the error never covers that often."""
    matrix = _spectrum(300)
    values = torch.linalg.eigvalsh(matrix)
    pairs = extreme_eigenpairs(Dense(matrix), 5)
    truth = float(values.square().sum()), float(values.clamp(max=0).square().sum() / values.square().sum())
    hits, narrow = [0, 0], [0, 0]
    for seed in range(200):
        found = rules(Dense(matrix), pairs.vectors, 10, 8, seed)
        norm = combined(
            (pairs.values.square().sum() + 2 * pairs.residuals.square().sum())[None],
            torch.tensor([[r.square] for r in found]).double(),
        )
        mass = spectral_sum(
            pairs.values, found, lambda t: t.clamp(max=0).square(), torch.square, combine=lambda s: s[0] / s[1]
        )
        for i, estimate in enumerate((norm, mass)):
            half = (estimate.hi - estimate.lo) / 2
            hits[i] += abs(estimate.value - truth[i]) <= half
            narrow[i] += abs(estimate.value - truth[i]) <= half / 2
    assert all(0.90 <= hit / 200 <= 0.99 for hit in hits), hits
    assert all(hit / 200 < 0.85 for hit in narrow), narrow


def test_traces_from_products_and_from_forms_agree():
    matrix = _spectrum(300)
    matrix = matrix @ matrix
    pairs = extreme_eigenpairs(Dense(matrix), 5)
    product = deflated_trace(Dense(matrix), pairs.values, pairs.vectors, 10)
    form = quadratic_trace(lambda v: float(v @ matrix @ v), pairs.vectors, 10)
    assert form.value == pytest.approx(product.value, rel=1e-6)
    assert form.lo <= float(matrix.trace()) <= form.hi


def test_trace_from_a_lanczos_basis_covers():
    """92-98 % of 200 seeds, with a tenth of the error that as many plain probes have."""
    operator = Dense(_spectrum(300))
    truth = float(operator.matrix.trace())
    found = [krylov_trace(operator, 24, 6, seed) for seed in range(200)]
    assert operator.products == 200 * 24
    assert 0.92 <= sum(e.lo <= truth <= e.hi for e in found) / 200 <= 0.98
    plain = [deflated_trace(operator, torch.zeros(0), torch.zeros(300, 0).double(), 24, seed) for seed in range(50)]
    rms = [sum((e.value - truth) ** 2 for e in estimates) / len(estimates) for estimates in (found, plain)]
    assert rms[0] < 0.1 * rms[1]


def test_probe_numbers_equal_the_dense_ones():
    module, x, y = build("conv-batchnorm-relu", 24)
    matrix, fisher = dense(module, x, y), dense_gauss_newton(module, x)
    values, vectors = torch.linalg.eigh(matrix)
    options = {
        "tolerance": 1e-8,
        "max_products": 200,
        "trace_products": 60,
        "density_probes": 30,
        "density_steps": 30,
        "top": 4,
    }
    result = eqbench.probe("spectrum", module, x, y, **options)
    assert result.status is Status.ok
    m, squares = result.metrics, values.square()
    gradient = Objective(module, [(x, y)]).gradient()[1]
    aligned = float((vectors[:, -4:].T @ gradient).norm() / gradient.norm())
    assert m["gradient_alignment"].value == pytest.approx(aligned, rel=1e-6)
    assert m["gradient_alignment_classes"].value == pytest.approx(aligned, rel=1e-6)  # four classes
    assert m["gradient_alignment"].null == pytest.approx(math.sqrt(4 / len(values)))
    assert m["gradient_curvature"].value == pytest.approx(
        float(gradient @ matrix @ gradient / gradient.square().sum()), rel=1e-8
    )
    assert m["stable_step"].value == pytest.approx(2 / float(values[-1]), rel=1e-8)
    for name, truth in {
        "trace": values.sum(),
        "ggn_trace": fisher.trace(),
        "frobenius_norm": squares.sum().sqrt(),
        "stable_rank": squares.sum() / squares.max(),
        "participation_rank": squares.sum() ** 2 / squares.square().sum(),
        "negative_mass": squares[values < 0].sum() / squares.sum(),
    }.items():
        half = (m[name].hi - m[name].lo) / 2
        assert abs(m[name].value - float(truth)) <= 2 * half + 1e-3 * abs(float(truth)), name
        assert m[name].value == pytest.approx(float(truth), rel=0.1, abs=1e-4), name
    halves = [float(torch.linalg.eigvalsh(dense(module, x[i::2], y[i::2]))[-1]) for i in range(2)]
    assert m["lambda_max_sampling"].value == pytest.approx(abs(halves[0] - halves[1]) / 2 / float(values[-1]), abs=2e-3)
    by_magnitude = values[values.abs().argsort(descending=True)[:4]]
    assert result.curves["by_magnitude"] == pytest.approx(by_magnitude.tolist(), rel=1e-4)
    assert sum(result.curves["density_weights"]) == pytest.approx(1, abs=1e-3)
    assert len(str(results._drawn(result.curves))) < 40_000


def test_tempered_eigenvalue():
    """It is the dense one at the best temperature, and scaling a linear network by 3 divides it by 9: confidence is out."""
    torch.manual_seed(0)
    x, head = torch.rand(40, 3, 4, 4).double(), nn.Linear(48, 4).double()
    y = torch.where(
        torch.rand(40) < 0.6, head(x.flatten(1)).argmax(1), torch.arange(40) % 4
    )  # better than chance, not perfect
    found = []
    for scale in (1.0, 3.0):
        with torch.no_grad():
            head.weight *= scale
            head.bias *= scale
        found.append(eqbench.probe("spectrum", nn.Sequential(nn.Flatten(), head), x, y, top=2).metrics)
    assert found[1]["lambda_max_tempered"].value == pytest.approx(found[0]["lambda_max_tempered"].value / 9, rel=1e-3)
    logits = head(x.flatten(1)).detach()
    best = min(torch.logspace(-2, 2, 4001).tolist(), key=lambda t: float(nn.functional.cross_entropy(logits / t, y)))
    with torch.no_grad():
        head.weight /= best
        head.bias /= best
    largest = float(torch.linalg.eigvalsh(dense(nn.Sequential(nn.Flatten(), head), x, y))[-1]) / best**2
    assert found[1]["lambda_max_tempered"].value == pytest.approx(largest, rel=1e-2)
    with torch.no_grad():
        y = head(x.flatten(1)).argmax(1)
    reason = (
        eqbench.probe("spectrum", nn.Sequential(nn.Flatten(), head), x, y, top=2).metrics["lambda_max_tempered"].reason
    )
    assert "every image is right" in reason


def test_probe_without_labels_measures_gauss_newton():
    module, x, _ = build("mlp-layernorm")
    fisher = dense_gauss_newton(module, x)
    values = torch.linalg.eigvalsh(fisher)
    result = eqbench.probe("spectrum", module, x, tolerance=1e-8, max_products=200)
    assert result.status is Status.ok
    assert all(name.startswith("ggn_") for name in result.metrics)
    assert result.metrics["ggn_lambda_max"].value == pytest.approx(float(values[-1]), rel=1e-8)
    assert result.metrics["ggn_trace"].lo <= float(values.sum()) * (1 + 1e-6)
    assert result.metrics["ggn_trace"].value == pytest.approx(float(values.sum()), rel=0.05)
    assert result.curves["ggn_eigenvalues"] == pytest.approx(values.flip(0)[:10].tolist(), rel=1e-4)
    assert result.cost["hvps"] > 0


def test_float64_stays_float64_where_a_network_asks_for_float32():
    """Some of timm's attention casts to float32, for half precision's sake; a certificate would be of float32's rounding."""

    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            places = torch.eye(6, dtype=torch.int64)  # as rotary embeddings have them
            return self.outer((self.inner(x).float() @ places.float()).tanh().to(x.dtype))

    torch.manual_seed(0)
    module, x, y = Cast().double(), torch.randn(5, 4).double(), torch.arange(5) % 3
    exact = module.outer(module.inner(x).tanh())
    objective = Objective(module, [(x, y)])
    assert torch.equal(objective.logits(x), exact)
    assert not torch.equal(module(x), exact)
    assert max(guard(objective).values()) < 1e-8


def test_networks_that_curvature_cannot_serve_are_skipped_with_a_reason():
    x, y = torch.rand(8, 3, 4, 4), torch.randint(4, (8,))

    class OldStyle(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.sin()

        @staticmethod
        def backward(ctx, g):
            return g

    class NoForward(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(48, 4)

        def forward(self, x):
            return OldStyle.apply(self.head(x.flatten(1)))

    for net, labels, words in (
        (NoForward(), y, "no forward derivative"),
        (NoForward(), None, "no forward derivative"),
        (nn.Sequential(nn.Flatten(), nn.Linear(48, 4)).bfloat16(), y, "not torch.bfloat16"),
    ):
        result = eqbench.probe("spectrum", net, x, labels)
        assert (result.status, words in (result.reason or "")) == ("skipped", True), result.reason
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    with torch.no_grad():
        net[1].bias[0] = 200
    assert "rounding" in eqbench.probe("spectrum", net, x).reason
    few = eqbench.probe("spectrum", nn.Sequential(nn.Flatten(), nn.Linear(48, 4)), x[:3], y[:3], micro_batch=4)
    assert few.status == "ok", few.reason
    assert "at least 4 images" in few.metrics["lambda_max_sampling"].reason
