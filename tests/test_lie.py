"""The Lie probe on networks whose derivatives are known: exact invariance, closed forms, and what must not be a number."""

import dataclasses

import numpy as np
import pytest
import timm
import torch
from torch import nn

import eqbench
from eqbench import groups
from eqbench.groups import get
from eqbench.groups.base import LieGroup
from eqbench.groups.spatial import SpatialGroup
from eqbench.models import seeded
from eqbench.probes import lie
from eqbench.probes.derivatives.directions import Velocities, blurred, controls, phases
from eqbench.probes.notebook import tensor_subject
from eqbench.schema import Lie

SIZE, N = 24, 12
FAST = {"resamples": 200, "attribution_images": 2, "attribution_probes": 4}


def pictures(n=N, size=SIZE, seed=0, margin=0):
    """Random images of spectrum 1/f with correlated colours in [0, 1]; zero in a margin, where nothing can leave."""
    noise = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))
    k = (torch.fft.fftfreq(size)[:, None] ** 2 + torch.fft.rfftfreq(size) ** 2).sqrt()
    k[0, 0] = 1
    x = torch.einsum(
        "cd,ndhw->nchw", torch.full((3, 3), 0.6) + 0.4 * torch.eye(3), torch.fft.irfft2(torch.fft.rfft2(noise) / k)
    )
    x = (x - x.amin((1, 2, 3), keepdim=True)) / (x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True))
    if margin:
        inside = torch.zeros(size, size)
        inside[margin:-margin, margin:-margin] = 1
        x = x * inside
    return x


def measured(net, x, group, **options):
    result = eqbench.probe("lie", net, x, group=group, **(FAST | options))
    assert result.status == "ok", result.reason
    return result


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def sums(weight):
    """Logits that are sums of pixels, weighted by (classes, H, W), of the mean colour."""
    return Lambda(lambda x: torch.einsum("nchw,khw->nk", x, weight) / 3)


def grid(size=SIZE):
    return torch.meshgrid(*[torch.arange(size) - (size - 1) / 2] * 2, indexing="ij")


def spots(x):
    """12 numbers of where things are."""
    return nn.functional.normalize(nn.functional.avg_pool2d(x, 12).flatten(1), dim=1)


def energy(weight):
    """sum_i w_i (h * x)_i^2: the sum of z (Dz) is 0, whatever z."""
    kernel = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    return Lambda(lambda x: (weight * nn.functional.conv2d(x, kernel, padding=1).square()).sum((2, 3)))


# A sum by parts of central differences is exact: what each network is invariant to; and one that is not.
y, x = grid()
chroma = lambda x: x - x.mean(1, keepdim=True)  # noqa: E731
luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
EXACT = {
    "translation": (energy(torch.ones(SIZE, SIZE)), energy(x)),
    "rotation": (sums(torch.stack([x**2 + y**2, torch.ones_like(x)])), sums(torch.stack([x**2 - y**2, x * y]))),
    "hyperbolic": (sums(torch.stack([x**2 - y**2, torch.ones_like(x)])), sums(torch.stack([x**2 + y**2, x * y]))),
    "hue": (
        Lambda(lambda x: chroma(x).square().sum(1).mean((1, 2))[:, None].expand(-1, 2)),
        Lambda(lambda x: x.square().mean((2, 3))),
    ),
    "contrast": (Lambda(lambda x: spots(x - 0.5)), Lambda(lambda x: spots(x - 0.4))),
    "saturation": (Lambda(lambda x: spots(x - (luma * x).sum(1, keepdim=True))), Lambda(spots)),
}


@pytest.mark.parametrize("group", EXACT)
def test_exact_invariance_and_what_is_none(group):
    invariant, other = EXACT[group]
    images = pictures(margin=6)
    assert measured(invariant, images, group, sigma=0.5).metrics["lie_ratio"].value < 1e-8
    assert measured(other, images, group, sigma=0.5).metrics["lie_ratio"].value > 1e-3


def test_a_layer_norm_after_a_stem_without_bias_knows_no_contrast():
    """A free oracle: timm's ConvNeXt at initialisation, images normalised about mid-grey."""
    with seeded(0):
        net = timm.create_model("test_convnext", num_classes=5)
    images = pictures(size=32)
    still = measured(net, images, "contrast", mean=[0.5] * 3, std=[0.25] * 3)
    assert still.metrics["lie_ratio"].value < 1e-10
    assert still.layers[-1].metrics["layer_lie_share"].value is None
    assert "rounding" in still.layers[-1].metrics["layer_lie_share"].reason
    moved = measured(net, images, "contrast", mean=[0.45] * 3, std=[0.25] * 3)
    assert moved.metrics["lie_ratio"].value > 1e-5


def test_layers_of_a_convolution():
    """A convolution of stride 1 commutes with the central difference; one of stride 2 does not."""
    torch.manual_seed(0)
    conv, strided = nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.Conv2d(4, 4, 3, 2, 1)
    net = nn.Sequential(conv, strided, nn.Flatten(), nn.Linear(4 * 12 * 12, 5))
    images = pictures(margin=6)
    result = measured(net, images, "translation", sigma=0.5)
    ratios = {layer.name: layer.metrics["layer_lie_ratio"].value for layer in result.layers}
    assert ratios["0"] < 1e-10 < 1e-2 < ratios["1"]
    bordered = measured(net, pictures(), "translation")
    inner, whole = bordered.layers[0].metrics["layer_lie_ratio"].value, bordered.curves["layer_lie_ratio_whole"][0]
    assert inner < 1e-10 < 0.1 < whole  # zero padding is at the border
    shares = {layer.name: layer.metrics["layer_lie_share"].value for layer in result.layers}
    assert sum(shares.values()) == pytest.approx(1)
    unrelated = Velocities(get("translation"), SIZE)
    z = torch.randn(2, 4, 9, 9)
    tangents = torch.randn(2, 2, 4, 9, 9)
    for (error, moved), straight, X in zip(unrelated.errors(z, tangents), tangents, unrelated.generators, strict=True):
        assert torch.allclose(error, straight - get("translation").velocity(z, X, pixels=SIZE), atol=1e-6)
        assert torch.allclose(moved, get("translation").velocity(z, X, pixels=SIZE).square().sum(1), atol=1e-5)


@pytest.mark.parametrize("name", [id for id, group in groups.GROUPS.items() if isinstance(group, SpatialGroup)])
def test_errors_of_maps_are_those_of_the_group_itself(name):
    group = groups.GROUPS[name]
    z, tangents = torch.randn(2, 4, 9, 9), torch.randn(len(group.generators()), 2, 4, 9, 9)
    fast, slow = Velocities(group, SIZE), Velocities(group, SIZE)
    slow.central = False
    for mine, own in zip(fast.errors(z, tangents), slow.errors(z, tangents), strict=True):
        assert all(
            torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max())) for a, b in zip(mine, own, strict=True)
        )


def linear(classes=400):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(classes, 3 * SIZE * SIZE, generator=generator) / (3 * SIZE * SIZE) ** 0.5
    return weight, Lambda(lambda x: x.flatten(1) @ weight.T)


def test_closed_form_of_a_linear_network():
    """F = Wx: |L|^2 = |W v|^2; white W responds to all directions alike, so that the ratio is 1."""
    weight, net = linear()
    images = pictures()
    result = measured(net, images, "affine")
    v = Velocities(get("affine"), SIZE).images(blurred(images, 1.0)).flatten(2)
    unit = Velocities(get("affine"), SIZE).displacement()
    response = (v @ weight.T).square().mean(2).mean(1).double().numpy()
    assert result.metrics["lie_logits"].value == pytest.approx(np.mean(response / unit), rel=1e-4)
    assert result.curves["lie_logits_by_generator"] == pytest.approx(response.tolist(), rel=1e-4)
    ratio = result.metrics["lie_ratio"]
    assert ratio.lo - 0.1 < 1 < ratio.hi + 0.1
    assert abs(ratio.value - 1) < 0.1
    assert result.metrics["lie_logits"].null == pytest.approx(result.metrics["lie_logits"].value, rel=0.15)
    p = (images @ torch.zeros(SIZE, 1)).sum() + blurred(images, 1.0).flatten(1) @ weight.T
    soft = torch.stack([torch.func.jvp(lambda z: z.softmax(-1), (p,), (one @ weight.T,))[1] for one in v])
    expected = np.mean(soft.square().mean(2).mean(1).double().numpy() / unit)
    assert result.metrics["lie_probabilities"].value == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_untrained_networks_respond_as_to_any_direction(name):
    with seeded(0):
        net = timm.create_model(name, num_classes=50)
    ratio = measured(net, pictures(8, 160), "affine", attribution_images=0).metrics["lie_ratio"]
    assert 0.3 < ratio.value < 1.6


def test_a_control_without_the_spectrum_is_found_out(monkeypatch):
    """White noise in place of the spectrum: a network that sees low frequencies alone then looks sensitive."""
    net = nn.Sequential(nn.AvgPool2d(6), nn.Flatten(), nn.Linear(48, 30))
    before = measured(net, pictures(), "affine").metrics["lie_ratio"].value
    white = lambda v, first, count: torch.randn(count, *v.shape[1:]) * (len(v) / v[0, 0].numel()) ** 0.5  # noqa: E731
    monkeypatch.setattr("eqbench.probes.derivatives.tally.controls", white)
    after = measured(net, pictures(), "affine").metrics["lie_ratio"].value
    assert 0.4 < before < 2 < 3 * before < after


def test_controls_keep_spectrum_colours_and_norm():
    v = Velocities(get("rotation"), SIZE).images(pictures(3))
    u = controls(v, 5, 2)
    norm = v.flatten(2).norm(dim=2)
    assert torch.allclose(u.flatten(2).norm(dim=2), torch.ones(2, 3), atol=1e-4)
    mine, own = torch.fft.rfft2(u), torch.fft.rfft2(v / norm[:, :, None, None, None])
    assert torch.allclose(mine.abs(), own.abs().expand_as(mine), atol=1e-4)
    cross = [part[:, :, 0] * part[:, :, 1].conj() for part in (mine, own)]
    assert torch.allclose(cross[0], cross[1].expand_as(cross[0]), atol=1e-4)  # one phase for all colours
    assert float((u * v / norm[:, :, None, None, None]).sum((2, 3, 4)).abs().max()) < 0.5  # another direction
    assert torch.equal(controls(v[:, 1:], 6, 2), u[:, 1:])  # seeded by the image
    assert torch.equal(phases((1,), 7, 7, 3), phases((1,), 7, 7, 3))


def test_one_control_stands_for_all_generators():
    """E |J u|^2 is the sum over generators of E |J u_X|^2 / |v_X|^2, for any J: here its exact value, by the spectrum."""
    v = Velocities(get("affine"), SIZE).images(pictures(1))
    weight = (
        torch.randn(20, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) / torch.linspace(1, 9, SIZE) ** 2
    )
    u = torch.cat([controls(v, seed, 100) for seed in range(20)])[:, 0]
    found = torch.einsum("ncij,kcij->nk", u, weight).square().sum(1)
    spectrum = torch.fft.fft2(v[:, 0] / v[:, 0].flatten(1).norm(dim=1)[:, None, None, None])
    kernel = torch.fft.fft2(weight)
    inner = torch.einsum("gcij,kcij->gkij", spectrum, kernel.conj()) / SIZE**2
    exact = float(inner.abs().square().sum())
    error = float(found.std()) / len(found) ** 0.5
    assert abs(float(found.mean()) - exact) < 4 * error < 0.1 * exact
    assert abs(float(found.mean()) - exact / len(v)) > 10 * error


def test_sharpening_share_of_known_responses():
    """A difference filter along x sees the odd part of a translation along x; a second difference, the even one."""
    odd = nn.Sequential(Lambda(lambda x: (x[..., 2:] - x[..., :-2]).square().mean((2, 3))))
    images = torch.rand(N, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    result = measured(odd, images, "translation", sigma=0.0)
    velocities = Velocities(get("translation"), SIZE)
    parts = []
    for direction in (velocities.images(images), velocities.sharpening(images)):
        change = torch.stack([torch.func.jvp(odd, (images,), (one,))[1] for one in direction])
        parts.append(change.square().sum((1, 2)).numpy())
    share = result.curves["sharpness_share_by_generator"]
    assert share == pytest.approx((parts[1] / (parts[0] + parts[1])).tolist(), rel=1e-4)
    assert result.metrics["sharpness_share"].n == N
    assert measured(odd, images, "hue").metrics["sharpness_share"].value is None


def small():
    with seeded(0):
        return nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(),
                             nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))  # fmt: skip


def test_numbers_do_not_depend_on_batches_or_on_what_ran_before():
    net, images = small(), pictures()
    torch.manual_seed(1)
    one = measured(net, images, "affine", batch=5)
    torch.manual_seed(2)
    same, other = measured(net, images, "affine", batch=5), measured(net, images, "affine", batch=12)
    assert dataclasses.replace(one, cost={}) == dataclasses.replace(same, cost={})
    for name, measure in one.metrics.items():
        assert measure.value == pytest.approx(other.metrics[name].value, rel=1e-4), name
    for a, b in zip(one.layers, other.layers, strict=True):
        for name in a.metrics:
            assert a.metrics[name].value == pytest.approx(b.metrics[name].value, rel=1e-3, abs=1e-6), (a.name, name)


def test_costs_are_counted():
    net, images = small(), pictures()
    subject = tensor_subject(net, images, batch=6)
    calls = 0

    def count(module, args):
        nonlocal calls
        calls += len(args[0])

    with torch.no_grad():
        net.register_forward_pre_hook(count)
        found = lie.run(subject, get("rotation"), None, Lie(images=N, controls=2, attribution_images=4, resamples=100))
    assert found.jvps == 2 + N * (1 + 2) + N * 2  # the check, generators and controls, sharpening
    # Two more of the first two images: the shape of the logits, the taps.
    assert subject.forwards == calls - 2 - 2


def test_intervals_respect_clusters():
    net, images = small(), pictures(6).repeat(4, 1, 1, 1)
    alone = tensor_subject(net, images)
    together = dataclasses.replace(tensor_subject(net, images), clusters=np.tile(np.arange(6), 4))
    conf = Lie(images=24, attribution_images=0, controls=1)
    narrow, wide = (
        lie.run(subject, get("rotation"), None, conf).metrics["lie_logits"] for subject in (alone, together)
    )
    assert narrow.value == wide.value
    assert wide.hi - wide.lo > 1.5 * (narrow.hi - narrow.lo)


def test_small_maps_are_refused_by_name():
    result = measured(nn.Sequential(nn.Conv2d(3, 4, 12, 12), nn.Flatten(), nn.Linear(16, 3)), pictures(), "rotation")
    layer = result.layers[0]
    assert (layer.name, layer.coverage, layer.metrics.get("layer_lie_ratio")) == ("0", 0.0, None)
    assert "2 x 2 cells" in layer.reason
    assert result.metrics["lie_coverage"].value < 1


class Fold(nn.Module):
    """Two outputs of a network that are no logits."""

    def forward(self, x):
        return x.mean(1)


@pytest.mark.parametrize(
    ("net", "images", "group", "status", "reason"),
    [
        (
            small(),
            pictures().mean(1, keepdim=True).expand(-1, 3, -1, -1),
            "hue",
            "skipped",
            "does not change these images",
        ),
        (Fold(), pictures(), "rotation", "skipped", "expected logits"),
        (Lambda(lambda x: (x - 0.5).mean((2, 3)).sqrt()), pictures(), "contrast", "failed", "not finite"),
        (Lambda(lambda x: 1e30 * (1e30 * x.mean((2, 3)))), pictures(), "rotation", "failed", "not finite"),
    ],
)
def test_what_is_no_number_says_why(net, images, group, status, reason):
    result = eqbench.probe("lie", net, images.contiguous(), group=group, **FAST)
    assert result.status == status, result.metrics
    assert reason in result.reason


def test_a_uniform_direction_has_no_control():
    result = measured(small(), pictures(), "brightness")
    assert result.metrics["lie_ratio"].value is None
    assert "same colour" in result.metrics["lie_ratio"].reason
    assert result.metrics["lie_logits"].value > 0


@pytest.mark.parametrize(
    ("net", "group"),
    [
        (Lambda(lambda x: (0 * x).sum((2, 3)) + 1), "rotation"),
        (Lambda(lambda x: x.mean((1, 2, 3))[:, None].expand(-1, 3)), "translation"),  # the controls, too, have mean 0
        (Lambda(lambda x: spots(x.mean(1, keepdim=True).expand(-1, 3, -1, -1))), "hue"),  # nor do they change greys
    ],
)
def test_a_network_that_sees_no_such_direction_has_no_ratio(net, group):
    result = measured(net, pictures(margin=6), group, sigma=0.5)
    assert result.metrics["lie_ratio"].value is None
    assert "but for rounding" in result.metrics["lie_ratio"].reason
    assert result.metrics["lie_logits"].value < 1e-10


class Push(LieGroup):
    """A user's group, with a velocity of its own and no field."""

    name, unit, interpolation = "push", "px", "forward difference"

    def generators(self):
        return ("push",)

    def act(self, x, g):
        raise NotImplementedError

    def velocity(self, x, generator, pixels=None):
        return (x - x.roll(1, -1)) * (1 if pixels is None else x.shape[-1] / pixels)

    def sweep(self, generator, size):
        return (0.0,)


def test_a_group_with_nothing_but_a_velocity():
    subject = tensor_subject(small(), pictures())
    found = lie.run(subject, Push(), None, Lie(images=N, attribution_images=2, resamples=100))
    assert 0 < found.metrics["lie_ratio"].value < 5
    assert found.metrics["sharpness_share"].value is None
    assert found.layers[0].metrics["layer_lie_ratio"].value > 0


def test_central_differences_say_so():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.lstm, self.head = nn.Conv2d(3, 8, 4, 4), nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 4)

        def forward(self, x):
            return self.head(self.lstm(self.conv(x).flatten(2).mT)[0].mean(1))

    with seeded(0):
        result = measured(Recurrent(), pictures(), "rotation")
    assert result.curves["method"] == ["central differences"]
    assert "exact to about" in result.metrics["lie_ratio"].reason
    assert result.cost["jvps"] == 0
    assert sum(layer.metrics["layer_lie_share"].value for layer in result.layers) == pytest.approx(1)
