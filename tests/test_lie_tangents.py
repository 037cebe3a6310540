"""Derivatives of all layers at once: against one direction at a time, and against differences in float64."""

import pytest
import timm
import torch
from torch import nn
from torch.func import jvp, vmap

from eqbench.features import Taps
from eqbench.probes.derivatives import tangents as lie_tangents
from eqbench.probes.derivatives.rules import RULES, Rules
from eqbench.probes.derivatives.tangents import METHODS, Jacobian

F = nn.functional
BATCHED, SINGLE, DIFFERENCES = METHODS
DIRECTIONS = 3


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gap(a, b):
    return float((a - b).norm() / b.norm())


def perturbed(net, scale):
    for p in net.parameters():
        p.data += scale * torch.randn_like(p)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return net.double().eval()


class Block(nn.Module):
    """Norm, attention, norm, perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2, self.attention = (
            nn.LayerNorm(8),
            nn.LayerNorm(8),
            nn.MultiheadAttention(8, 2, batch_first=True),
        )
        self.qkv, self.mlp = nn.Linear(8, 24), nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x):
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        q, k, v = self.qkv(self.norm2(x)).reshape(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return x + self.mlp(x)


class Zoo(nn.Module):
    """What first derivatives may go wrong at: norms, attention, kinks, in-place functions, gates, tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn, self.pool = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.MaxPool2d(3, 2, 1)
        self.relu, self.swish = nn.ReLU(inplace=True), nn.Hardswish(inplace=True)
        self.group, self.gate = nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.block, self.head = Block(), nn.Linear(8, 5)

    def forward(self, x):
        x = shortcut = self.pool(self.relu(self.bn(self.stem(x))))
        x = self.swish(self.group(x))
        x = x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid_()
        x += shortcut
        x = torch.cat([self.token.expand(len(x), -1, -1), x.flatten(2).mT], 1)
        x = self.block(x)
        return self.head(x[:, 0] + 0.1 * x.mean(1))


def network(name):
    torch.manual_seed(0)
    if name == "zoo":
        return perturbed(Zoo(), 0.3), 32
    return perturbed(timm.create_model(name, num_classes=6), 0.05), 160 if "vit" in name else 32


def jacobian(net, x, method=""):
    return Jacobian(net, Taps(net, x), method)


@pytest.mark.parametrize(
    "name", ["zoo", "test_resnet", "test_convnext", "test_vit4", "test_nfnet", "test_efficientnet_gn", "test_maxvit"]
)
def test_the_methods_agree_on_every_layer(name):
    net, size = network(name)
    x, v = 0.5 + 0.2 * random(2, 3, size, size), random(DIRECTIONS, 2, 3, size, size, seed=1)
    one = jacobian(net, x, BATCHED)
    y, dy = one(x, v)
    assert (one.forwards, one.jvps) == (2, 2 * DIRECTIONS)
    assert list(y) == [layer.name for layer in one.taps.layers]
    one.method = SINGLE
    single = one(x, v)
    one.method, one.step = DIFFERENCES, 1e-6
    difference = one(x, v)
    for layer in y:
        assert torch.allclose(y[layer], single[0][layer], atol=1e-10)
        assert gap(dy[layer], single[1][layer]) < 1e-10, layer
        assert gap(dy[layer], difference[1][layer]) < 1e-5, layer
    with torch.no_grad():
        assert torch.allclose(y["logits"][:, :, 0, 0], net(x), atol=1e-10)


def test_single_precision_is_exact_to_rounding():
    net, size = network("test_vit4")
    x, v = 0.5 + 0.2 * random(2, 3, size, size), random(DIRECTIONS, 2, 3, size, size, seed=1)
    exact = jacobian(net, x, BATCHED)(x, v)[1]["logits"]
    single = jacobian(net.float(), x.float(), BATCHED)(x.float(), v.float())[1]["logits"]
    assert gap(single.double(), exact) < 1e-4


WEIGHTS = {"weight": random(8, seed=2), "bias": random(8, seed=3)}
STATISTICS = {"running_mean": random(8, seed=4), "running_var": random(8, seed=5).exp()}
MATRIX = random(3, 8, seed=7)
KERNEL, CENTRED = random(8, 2, 3, 3, seed=6), {"stride": 2, "padding": 1, "groups": 4}
CALLS = {
    "gelu": lambda x: F.gelu(x),
    "gelu, tanh": lambda x: F.gelu(x, approximate="tanh"),
    "layer norm": lambda x: F.layer_norm(x.mT, (8,), **WEIGHTS, eps=1e-3),
    "layer norm of maps": lambda x: F.layer_norm(x, x.shape[1:], WEIGHTS["weight"][:, None, None].expand(x.shape[1:])),
    "layer norm without weights": lambda x: F.layer_norm(x, x.shape[-1:]),
    "batch norm": lambda x: F.batch_norm(x, **STATISTICS, **WEIGHTS, eps=1e-3),
    "batch norm without weights": lambda x: F.batch_norm(x.flatten(2), *STATISTICS.values()),
    "batch norm, training": lambda x: F.batch_norm(x, None, None, training=True),
    "convolution": lambda x: F.conv2d(x, KERNEL, WEIGHTS["bias"], **CENTRED),
    "convolution, by position": lambda x: F.conv2d(x, KERNEL, None, (1, 1), "same", 1, 4),
    "convolution by the image": lambda x: F.conv2d(x, x[0, :, :2, :1, None] * KERNEL, groups=4),
    "linear": lambda x: F.linear(x, MATRIX, MATRIX[:, 0]),
    "linear, by name": lambda x: F.linear(input=x, weight=MATRIX),
    "linear in the image": lambda x: F.linear(x, x[0, 0]),
}


@pytest.mark.parametrize("name", CALLS)
def test_rules_give_what_torch_gives(name):
    x, v = random(2, 8, 8, 8), random(DIRECTIONS, 2, 8, 8, 8, seed=1)
    y, dy = jvp(CALLS[name], (x,), (v[0],))
    own = torch.stack([jvp(CALLS[name], (x,), (one,))[1] for one in v])
    with Rules():
        single = jvp(CALLS[name], (x,), (v[0],))
        batched = vmap(lambda one: jvp(CALLS[name], (x,), (one,)), out_dims=(None, 0))(v)
        plain = CALLS[name](x)
    for found in (single[0], batched[0], plain):
        assert torch.equal(found, y)
    assert gap(single[1], dy) < 1e-14
    assert gap(batched[1], own) < 1e-14


@pytest.mark.parametrize("function", RULES)
def test_every_rule_is_used_by_networks(function, monkeypatch):
    """One that is wrong changes the derivatives of some layer."""
    net, size = network("zoo")
    x, v = 0.5 + 0.2 * random(2, 3, size, size), random(DIRECTIONS, 2, 3, size, size, seed=1)
    one, rule = jacobian(net, x, BATCHED), RULES[function]
    before = one(x, v)[1]
    monkeypatch.setitem(RULES, function, lambda x, dx, *how, **named: (rule(x, dx, *how, **named)[0], rule(x, 2 * dx, *how, **named)[1]))  # fmt: skip
    after = one(x, v)[1]
    assert gap(after["logits"], before["logits"]) > 1e-2


class Recurrent(nn.Module):
    """Has no forward mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm, self.head = nn.Conv2d(3, 8, 4, 4), nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.lstm(self.conv(x).flatten(2).mT)[0].mean(1))


class Unbatched(torch.autograd.Function):
    """Has a forward derivative, but none under vmap."""

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx, t):
        return ctx.saved_tensors[0].cos() * t


class Sine(nn.Module):
    def forward(self, x):
        return Unbatched.apply(x)


def small(activation=None):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), activation or nn.ReLU(), nn.Flatten(), nn.Linear(784, 5)).eval()


def images():
    return random(2, 3, 16, 16).sigmoid().float(), random(2, 3, 16, 16, seed=1).float()


def test_the_first_method_that_works_is_chosen():
    x, v = images()
    for net, method in ((small(), BATCHED), (small(Sine()), SINGLE), (Recurrent().eval(), DIFFERENCES)):
        one = jacobian(net, x)
        one.choose(x, v)
        assert one.method == method
        assert (one.note is None) == (method != DIFFERENCES)
    assert "exact to about" in one.note
    assert one.jvps == 0  # none was of use


def test_differences_are_as_exact_as_they_say():
    x, v = images()
    torch.manual_seed(0)
    net = Recurrent().eval()
    one = jacobian(net, x)
    one.choose(x, v)
    found = one(x, v[None])[1]["logits"].double()
    exact = jacobian(net.double(), x.double(), DIFFERENCES)
    exact.step = 1e-5
    stated = float(one.note.split("exact to about ")[1].split(":")[0])
    assert gap(found, exact(x.double(), v[None].double())[1]["logits"]) < max(10 * stated, 1e-4) < 1e-2


def test_a_derivative_that_is_not_that_of_the_function_is_found_out():
    x, v = images()
    net = small(nn.GELU())

    class Detached(nn.Module):
        def forward(self, x):
            return net(2 * x.detach() - x)

    one = jacobian(Detached(), x)
    one.choose(x, v)
    assert one.method == DIFFERENCES
    assert "off by" in one.note


def test_the_check_accepts_kinks_and_invariance():
    x, v = images()
    deep = nn.Sequential(
        *[m for _ in range(6) for m in (nn.LazyConv2d(8, 3, padding=1), nn.ReLU())], nn.Flatten(), nn.LazyLinear(5)
    )
    deep(x)
    for net in (
        deep.eval(),
        nn.Sequential(nn.Conv2d(3, 5, 16), nn.Flatten(), nn.LayerNorm(5), nn.Softplus(), nn.LayerNorm(5)),
    ):
        one = jacobian(net, x)
        one.choose(x, v)
        assert one.method == BATCHED
    one.choose(torch.zeros_like(x), torch.zeros_like(v))  # black images
    assert one.method == BATCHED


def test_images_at_once_depend_on_shapes_alone():
    assert Jacobian.images(torch.empty(8, 3, 224, 224), 8) == 2
    assert Jacobian.images(torch.empty(8, 3, 384, 384), 100) == 1
    assert Jacobian.images(torch.empty(8, 3, 32, 32), 8) == 128


def test_many_directions_are_taken_in_parts(monkeypatch):
    x, v = images()
    one = jacobian(small(), x, BATCHED)
    v = torch.stack([v, v.roll(1, -1), v.roll(2, -1)])
    whole = one(x, v)[1]
    monkeypatch.setattr(lie_tangents, "DIRECTIONS", 2)
    for name, parts in one(x, v)[1].items():
        assert torch.allclose(parts, whole[name], atol=1e-6)
