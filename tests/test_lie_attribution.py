"""The chain rule of Lie derivatives against dense Jacobians, computed layer by layer in float64."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import jacrev

from eqbench.features import Taps
from eqbench.groups import get
from eqbench.probes.derivatives import attribution as chain
from eqbench.probes.derivatives.directions import Velocities
from eqbench.probes.derivatives.tangents import METHODS, Jacobian

SIZE, IMAGES = 12, 2


class Net(nn.Module):
    """Three blocks one after the other; with `branch`, what the second one sees goes round it, too."""

    def __init__(self, classes: int, branch: bool = False) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.GELU()),
            nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.Tanh()),
            nn.Sequential(nn.Conv2d(4, 5, 3, 1, 1), nn.Softplus()),
        )
        self.head, self.branch = nn.Linear(5, classes), branch

    def forward(self, x):
        x = self.blocks[0](x)
        y = self.blocks[1](x)
        z = self.blocks[2](y + x if self.branch else y)
        return self.head(z.mean((2, 3)))


def case(classes, branch=False):
    torch.manual_seed(0)
    net = Net(classes, branch).double().eval()
    x = torch.rand(IMAGES, 3, SIZE, SIZE, dtype=torch.float64)
    jacobian = Jacobian(net, Taps(net, x), next(iter(METHODS)))
    velocities = Velocities(get("affine"), SIZE)
    maps, tangents = jacobian(x, velocities.images(x))
    errors = {}
    for name, z in maps.items():
        acts = z.shape[-1] > 1
        errors[name] = torch.stack([e for e, _ in velocities.errors(z, tangents[name])]) if acts else tangents[name]
    return net, x, jacobian, velocities, errors, tangents


def dense(net, x, velocities):
    """|J_{N:i+1} (L f_i)(z_{i-1})|^2 with L f_i = J_i v(z_{i-1}) - v(z_i): (layers, G, images)."""
    stages = [*(layer for block in net.blocks for layer in block), lambda z: net.head(z.mean((2, 3)))]
    found = np.zeros((len(stages), len(velocities.generators), len(x)))
    for n, image in enumerate(x):
        for k, X in enumerate(velocities.generators):
            z, v = image[None], velocities.group.velocity(image[None], X)
            for i, stage in enumerate(stages):
                jacobian = jacrev(stage)(z).flatten(0, -5).flatten(1).reshape(-1, z.numel())
                y = stage(z)
                moved = velocities.group.velocity(y, X, pixels=SIZE) if y.ndim == 4 else torch.zeros_like(y)
                lie = (jacobian @ v.flatten()).view(y.shape) - moved

                def rest(y, i=i):
                    for later in stages[i + 1 :]:
                        y = later(y)
                    return y

                outer = jacrev(rest)(y).reshape(-1, y.numel())
                found[i, k, n] = float((outer @ lie.flatten()).square().sum())
                z, v = y, moved
    return found


def attributed(classes, count, branch=False):
    net, x, jacobian, velocities, errors, tangents = case(classes, branch)
    return net, x, velocities, [*errors], chain.attribute(jacobian, x, errors, tangents, count, 0)


def test_unit_vectors_are_exact():
    net, x, velocities, names, found = attributed(classes=4, count=4)
    assert found.exact
    rows = chain.cuts([found], 1e-8)
    assert [names[row] for row in rows] == [f"blocks.{i}.{j}" for i in range(3) for j in range(2)] + ["logits"]
    mean, variance = chain.contributions([found], rows)
    expected = dense(net, x, velocities)
    assert np.allclose(mean, expected, rtol=1e-8, atol=1e-12 * expected.max())
    assert not variance.any()


def test_random_probes_converge_and_know_how_well():
    """The mean of chi-square variables: its standard error is stated, and the exact value lies within."""
    net, x, velocities, _, found = attributed(classes=40, count=39)
    assert not found.exact
    mean, variance = chain.contributions([found], range(7))
    expected = dense(net, x, velocities)
    off = (mean - expected) / np.sqrt(variance)
    assert 0.3 < np.median(np.abs(off)) < 1.2  # 0.67 of a normal distribution
    assert np.abs(mean.sum() / expected.sum() - 1) < 4 * np.sqrt(variance.sum()) / expected.sum()
    more = attributed(classes=400, count=300)
    few = attributed(classes=400, count=20)
    ratio = np.mean(chain.contributions([few[-1]], range(7))[1]) / np.mean(chain.contributions([more[-1]], range(7))[1])
    assert 7 < ratio < 30  # 1 / count


@pytest.mark.parametrize(
    "mutant",
    [
        lambda found: setattr(found, "products", found.kept),  # D instead of E
        lambda found: setattr(found, "products", -found.products[::-1]),
    ],
)
def test_the_reference_notices_a_mutation(mutant):
    net, x, velocities, _, found = attributed(classes=4, count=4)
    mutant(found)
    mean, _ = chain.contributions([found], range(7))
    expected = dense(net, x, velocities)
    assert not np.allclose(mean, expected, rtol=0.1, atol=1e-3 * expected.max())


def test_the_terms_add_up_to_the_derivative_of_the_logits():
    *_, found = attributed(classes=4, count=4)
    terms = np.diff(found.products, axis=0, prepend=0.0)
    assert np.allclose(terms.sum(0), found.kept[-1], rtol=1e-10)
    assert np.abs(terms[0] / terms.sum(0)).max() > 1.05  # and some of them cancel


def test_a_layer_that_is_no_cut_is_found_out():
    """What goes round the second block does not pass through it."""
    *_, names, found = attributed(classes=4, count=4, branch=True)
    assert [names[row] for row in chain.cuts([found], 1e-8)] == [
        f"blocks.{i}.{j}" for i in (0, 2) for j in range(2)
    ] + ["logits"]
    assert [names[row] for row in chain.cuts([found], 1e6)] == names


def test_tokens_and_their_grid_are_one_cut():
    import timm

    torch.manual_seed(0)
    net = timm.create_model("test_vit", num_classes=4).double().eval()
    x = torch.rand(2, 3, 160, 160, dtype=torch.float64)
    jacobian = Jacobian(net, Taps(net, x), next(iter(METHODS)))
    velocities = Velocities(get("translation"), 160)
    _, tangents = jacobian(x, velocities.images(x))
    found = chain.attribute(jacobian, x, tangents, tangents, 4, 0)
    blocks = chain.blocks(list(tangents))
    assert blocks["blocks.1"] == ["blocks.1:prefix", "blocks.1"]
    assert chain.cuts([found], 1e-8) == list(range(len(blocks)))
    grid = {name: z for name, z in tangents.items() if ":prefix" not in name}
    alone = chain.attribute(jacobian, x, grid, grid, 4, 0)
    assert len(chain.cuts([alone], 1e-8)) < len(blocks)


def test_probes_depend_on_the_image_alone():
    whole, exact = chain.probes(4, 20, 3, 5)
    assert not exact
    assert torch.equal(chain.probes(2, 20, 3, 7)[0], whole[:, 2:])
