"""The Lie derivative as ngruver/lie-deriv measures it, for comparison with published numbers: `compat: lie-deriv`.

Softmax outputs; images warped bilinearly with reflected borders and differentiated at the grid's own points, where that warp
has a kink, so one-sidedly; t in half widths of the image; all on the normalised image. Its stretch is kept as it is there:
the axis that is not stretched collapses to its middle.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import jvp

from eqbench.errors import Failed, Unsupported
from eqbench.features import Taps
from eqbench.groups import LieGroup
from eqbench.models import Network
from eqbench.probes.base import Finding, Subject, check_logits
from eqbench.probes.derivatives.tangents import Jacobian
from eqbench.results import Measure
from eqbench.schema import Lie
from eqbench.stats import intervals

Row = tuple[Tensor | float, Tensor | float, Tensor | float]


def _matrix(*rows: Row) -> Tensor:
    """(1, 2, 3), differentiable in its entries."""
    return torch.stack([torch.stack([torch.as_tensor(entry) for entry in row]) for row in rows])[None]


# Of sampling positions (x, y) in [-1, 1]^2.
MATRICES: dict[str, Callable[[Tensor], Tensor]] = {
    "translation_x": lambda t: _matrix((1.0, 0.0, t), (0.0, 1.0, 0.0)),
    "translation_y": lambda t: _matrix((1.0, 0.0, 0.0), (0.0, 1.0, t)),
    "rotation": lambda t: _matrix((t.cos(), t.sin(), 0.0), (-t.sin(), t.cos(), 0.0)),
    "scale": lambda t: _matrix((1 - t, 0.0, 0.0), (0.0, 1 - t, 0.0)),
    "shear_x": lambda t: _matrix((1.0, t, 0.0), (0.0, 1.0, 0.0)),
    "shear_y": lambda t: _matrix((1.0, 0.0, 0.0), (t, 1.0, 0.0)),
    "hyperbolic": lambda t: _matrix((t.cosh(), t.sinh(), 0.0), (t.sinh(), t.cosh(), 0.0)),
    "stretch_x": lambda t: _matrix((1 + t, 0.0, 0.0), (0.0, 0.0, 0.0)),
    "stretch_y": lambda t: _matrix((0.0, 0.0, 0.0), (0.0, 1 + t, 0.0)),
}
SATURATE = (
    "contrast"  # the group whose generator is theirs of this name: x (1 + t), the grey of the mean standing still
)


def tangent(x: Tensor, generator: str) -> tuple[Tensor, Tensor]:
    """The transformed images at t = 0, and their derivative: (B, 3, H, W) each.

    Args:
        x: normalised images (B, 3, H, W).

    Raises:
        Unsupported: lie-deriv has no such generator.
    """
    if generator == SATURATE:
        return x, x
    if generator not in MATRICES:
        raise Unsupported(f"lie-deriv has no generator '{generator}': it has {', '.join([*MATRICES, SATURATE])}")
    matrix = MATRICES[generator]
    return jvp(lambda t: warp(x, matrix(t).to(x)), (x.new_zeros(()),), (x.new_ones(()),))[:2]


def warp(x: Tensor, matrix: Tensor) -> Tensor:
    """Sample images (B, C, H, W) at the positions A (x, y, 1), bilinearly, with reflected borders.

    Args:
        matrix: A, (1, 2, 3); the centres of the corner pixels are at -1 and 1.
    """
    height, width = x.shape[-2:]
    grid = nn.functional.affine_grid(matrix, [1, 1, height, width], align_corners=True)[0]
    sample = torch.zeros((), dtype=x.dtype)
    places = [((grid[..., k] + 1) / 2) * (n - 1) for k, n in ((1, height), (0, width))]
    cells = [place.detach().floor() for place in places]
    for dy in (0, 1):
        for dx in (0, 1):
            weight = torch.ones((), dtype=x.dtype)
            index = []
            for place, cell, d, n in zip(places, cells, (dy, dx), (height, width), strict=True):
                weight = weight * (place - cell if d else cell + 1 - place)
                index.append((n - 1 - (n - 1 - (cell + d).abs()).abs()).long())
            sample = sample + x[..., index[0], index[1]] * weight
    return sample


def derivatives(module: nn.Module, x: Tensor, generator: str, jacobian: Jacobian | None = None) -> Tensor:
    """d/dt softmax(module(exp(tX) x)) at t = 0: (B, classes).

    Args:
        module: maps normalised images to logits. x: normalised images (B, 3, H, W).
    """
    start, v = tangent(x, generator)
    if jacobian is None:
        jacobian = Jacobian(module, Taps(module, start))
        jacobian.choose(start[:2], v[:2])
    maps, along = jacobian(start, v[None])
    p, dy = maps["logits"].flatten(1).softmax(-1), along["logits"][0].flatten(1)
    return p * (dy - (p * dy).sum(-1, keepdim=True))


def run(subject: Subject, group: LieGroup, conf: Lie) -> Finding:
    """Measure one network as lie-deriv does.

    Raises:
        Unsupported: lie-deriv has no such generator.
        Failed: derivatives that are not finite.
    """
    network = subject.network
    generators = group.generators()
    rows: list[Tensor] = []
    jacobian: Jacobian | None = None
    module = network.module if isinstance(network, Network) else network
    for batch in subject.batches(subject.size):
        for x in batch.to(subject.device).split(Jacobian.images(batch, 1)):
            if isinstance(network, Network):
                x = (x - network.mean) / network.std
            if jacobian is None:
                check_logits(module(x[:2]), x[:2])
                jacobian = Jacobian(module, Taps(module, x))
                jacobian.choose(x[:2], tangent(x[:2], generators[0])[1])
            found = torch.stack([derivatives(module, x, X, jacobian) for X in generators]).double()
            rows.append(torch.stack([found.abs().mean(-1), found.square().mean(-1)]).cpu())
    sums = torch.cat(rows, -1).numpy()
    if not torch.isfinite(torch.from_numpy(sums)).all():
        raise Failed("derivatives are not finite")
    assert jacobian is not None
    subject.forwards += jacobian.forwards
    each = sums.mean(1).T
    values, lo, hi = intervals(
        lambda w: (w @ each) / w.sum(1, keepdims=True), subject.n, conf.resamples, subject.clusters
    )
    names = ("lie_deriv_abs", "lie_deriv_square")
    metrics = {name: Measure(values[i], lo[i], hi[i], subject.n, reason=jacobian.note) for i, name in enumerate(names)}
    curves = {"generators": list(generators), "method": [jacobian.method]}
    by_generator = dict(zip((f"{name}_by_generator" for name in names), sums.mean(2).tolist(), strict=True))
    return Finding(metrics, curves | by_generator, jvps=jacobian.jvps)
