"""The numbers of ngruver/lie-deriv, computed by its own code, on a network and an image given by formulas."""

import pytest
import torch
from torch import nn

import eqbench
from eqbench.groups import get
from eqbench.groups.translation import AXES
from eqbench.probes.derivatives import compat
from eqbench.probes.derivatives.compat import derivatives, tangent
from eqbench.probes.derivatives.directions import Velocities
from eqbench.probes.notebook import tensor_subject
from eqbench.schema import Lie

# Mean |L| and mean L^2 of the softmax outputs; None: not recorded.
PUBLISHED = {
    "translation_x": (9.784509e-3, 1.374811e-4),
    "translation_y": (1.458173e-2, 3.695524e-4),
    "rotation": (4.717631e-3, 5.275393e-5),
    "scale": (4.254208e-2, 2.448005e-3),
    "shear_x": (6.587317e-3, 6.962370e-5),
    "hyperbolic": (9.005220e-3, 1.225331e-4),
    "contrast": (5.370293e-2, 4.264639e-3),
    "stretch_x": (2.785027e-2, None),
}
SIZE = 33


class Mean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


@pytest.fixture(scope="module")
def tiny():
    """The k-th parameter is p_i = frac(43758.5453 sin(12.9898 i + 78.233 k)) / 2."""
    down = (nn.Conv2d(3, 8, 3, 2, 1), nn.GELU(), nn.Conv2d(8, 16, 3, 2, 1), nn.GELU())
    net = nn.Sequential(*down, Mean(), nn.Linear(16, 10)).eval()
    for k, p in enumerate(net.parameters()):
        i = torch.arange(p.numel(), dtype=torch.float64)
        p.data = (0.5 * (43758.5453 * torch.sin(12.9898 * i + 78.233 * k)).frac()).view(p.shape).float()
    return net


@pytest.fixture(scope="module")
def image():
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, SIZE)] * 2, indexing="ij")
    return torch.stack([torch.sin(3 * x + 2 * y), torch.cos(4 * x * y), torch.exp(-4 * (x**2 + (y - 0.2) ** 2))])[None]


@pytest.mark.parametrize("generator", PUBLISHED)
def test_published_numbers(tiny, image, generator):
    found = derivatives(tiny, image, generator)
    absolute, square = PUBLISHED[generator]
    assert float(found.abs().mean()) == pytest.approx(absolute, rel=1e-5)
    if square:
        assert float(found.square().mean()) == pytest.approx(square, rel=1e-5)


def test_central_differences_give_other_numbers(tiny, image, monkeypatch):
    """What this probe measures by default is not what lie-deriv does."""
    velocity = get("translation").velocity(image, "translation_x") * (SIZE - 1) / 2
    monkeypatch.setattr(compat, "tangent", lambda x, generator: (x, -velocity))
    found = derivatives(tiny, image, "translation_x")
    assert abs(float(found.abs().mean()) / PUBLISHED["translation_x"][0] - 1) > 1e-2


@pytest.mark.parametrize("generator", ["translation_x", "translation_y", "rotation", "scale", "shear_x", "hyperbolic"])
def test_its_tangent_is_the_velocity_and_the_sharpening_part(image, generator):
    """Sampling at u + t A u, by linear interpolation, is a one-sided difference along A u."""
    velocities = Velocities(get("translation" if generator in AXES else generator), SIZE)
    index, x = velocities.generators.index(generator), image.double()
    odd, even = (part[index][..., 1:-1, 1:-1] for part in (velocities.images(x), velocities.sharpening(x)))
    theirs = tangent(x, generator)[1][..., 1:-1, 1:-1] / ((SIZE - 1) / 2 if generator in AXES else 1)
    sign = -1 if generator == "scale" else 1  # theirs scales the other way
    assert torch.allclose(theirs, sign * (even - odd), atol=1e-12)
    assert not torch.allclose(theirs, -sign * odd, atol=1e-3)


def test_its_stretch_collapses_the_image(image):
    start, _ = tangent(image, "stretch_x")
    assert torch.allclose(start, image[:, :, SIZE // 2, None].expand_as(image))


def test_as_a_probe(tiny, image):
    """On the normalised image, whatever the normalisation; means over images and generators."""
    x = torch.cat([image, image.flip(-1)]).repeat(4, 1, 1, 1)
    low, high = x.min(), x.max()
    scaled = (x - low) / (high - low)
    mean, std = [float(-low / (high - low))] * 3, [float(1 / (high - low))] * 3
    subject = tensor_subject(tiny, scaled, mean=mean, std=std, batch=3)
    found = compat.run(subject, get("translation"), Lie(images=8, compat="lie-deriv"))
    each = torch.stack([derivatives(tiny, x, X) for X in get("translation").generators()])
    assert found.metrics["lie_deriv_abs"].value == pytest.approx(float(each.abs().mean()), rel=1e-4)
    assert found.metrics["lie_deriv_square"].value == pytest.approx(float(each.square().mean()), rel=1e-4)
    assert found.curves["generators"] == ["translation_y", "translation_x"]
    assert found.jvps == 8 * 2 + 2
    assert subject.forwards > 8


def test_what_lie_deriv_does_not_have_is_refused():
    result = eqbench.probe("lie", nn.Sequential(Mean(), nn.Linear(3, 4)), torch.rand(8, 3, 9, 9), group="hue", compat="lie-deriv")  # fmt: skip
    assert result.status == "skipped"
    assert "lie-deriv has no generator 'hue'" in result.reason
