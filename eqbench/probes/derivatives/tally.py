"""The pass of the Lie probe over the images: per-image sums of squares of every layer's derivatives, and nothing larger."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eqbench.errors import Failed
from eqbench.features import Kind
from eqbench.features import Layer as Tapped
from eqbench.groups.spatial import SpatialGroup
from eqbench.probes.base import Subject
from eqbench.probes.derivatives.attribution import Attribution, attribute
from eqbench.probes.derivatives.directions import Velocities, blurred, controls
from eqbench.probes.derivatives.tangents import Jacobian, Maps
from eqbench.schema import Lie
from eqbench.stats import Array

SHARPENED = 32  # images on which the sharpening part is measured
LARGE = 8  # cells


@dataclass
class Tally:
    """Per-image sums; every array ends in the images.

    Attributes:
        speed: |v_X|^2, (G, n). uniform: the part of it that is the same for all pixels.
        error: |L_X f|^2 of every layer, on its interior and on all of it, (layers, 2, G, n).
        control: the mean of |Ju|^2, (layers, 2, n). moved: |v_X(f)|^2, (layers, 2, G, n).
        probabilities: |L_X softmax f|^2, and the mean of |J u|^2 of it in the last row, (G + 1, n).
        level: |f|^2 / |x|^2 of every layer, (layers, n).
        sharp: of the first images, unfiltered: |J v_X|^2 and |J e_X|^2 of the logits, and |v_X|^2, (3, G, m).
        chain: of the first images.
    """

    speed: Array
    uniform: Array
    error: Array
    control: Array
    moved: Array
    probabilities: Array
    level: Array
    sharp: Array | None
    chain: list[Attribution]


def tally(subject: Subject, velocities: Velocities, jacobian: Jacobian, layers: Sequence[Tapped], conf: Lie) -> Tally:
    """One pass over the images.

    Raises:
        Failed: derivatives that are not finite.
    """
    rows: list[dict[str, Tensor]] = []
    sharp: list[Tensor] = []
    chain: list[Attribution] = []
    start = 0
    for batch in subject.batches(subject.size):
        for x in batch.to(subject.device).split(Jacobian.images(batch, len(velocities.generators) + conf.controls)):
            smooth = blurred(x, conf.sigma)
            v = velocities.images(smooth)
            maps, tangents = jacobian(smooth, torch.cat([v, controls(v, start, conf.controls)]))
            first = min(max(conf.attribution_images - start, 0), len(x))
            errors: Maps | None = {} if first else None
            sums = [squares(velocities, layer, maps, tangents, errors) for layer in layers]
            rows.append(_row(v, torch.stack(sums), _softened(maps, tangents, len(v))))
            level = torch.stack([maps[layer.name].square().sum((1, 2, 3)) for layer in layers])
            rows[-1]["level"] = level.double() / smooth.square().sum((1, 2, 3))
            if errors:
                straight = {name: tangents[name][: len(v), :first] for name in errors}
                errors = {name: error[:, :first] for name, error in errors.items()}
                chain.append(attribute(jacobian, smooth[:first], errors, straight, conf.attribution_probes, start))
            if isinstance(velocities.group, SpatialGroup) and start < SHARPENED:
                sharp.append(_sharpened(velocities, jacobian, x[: SHARPENED - start]))
            start += len(x)
    found = {name: torch.cat([row[name] for row in rows], -1).cpu().numpy() for name in rows[0]}
    for i, layer in enumerate(layers):
        bad = sum(int((~np.isfinite(found[name][i])).sum()) for name in ("error", "control", "moved"))
        if bad:
            raise Failed(f"layer {layer.name}: {bad} sums of squares of derivatives are not finite")
    return Tally(**found, sharp=torch.cat(sharp, -1).double().cpu().numpy() if sharp else None, chain=chain)


def _row(v: Tensor, sums: Tensor, probabilities: Tensor) -> dict[str, Tensor]:
    """What a batch adds to the first fields of the tally, by name."""
    controls = sums.shape[2] - 2 * len(v)
    error, control, moved = sums.double().split([len(v), controls, len(v)], 2)
    speed, uniform = v.square().sum((2, 3, 4)), v.mean((-2, -1)).square().sum(2) * v.shape[-2:].numel()
    found = {"speed": speed, "uniform": uniform, "error": error, "control": control.mean(2), "moved": moved}
    return {name: part.double() for name, part in found.items()} | {"probabilities": probabilities.double()}


def squares(velocities: Velocities, layer: Tapped, maps: Maps, tangents: Maps, errors: Maps | None = None) -> Tensor:
    """|E|^2 of every generator, |Ju|^2 of every control and |v_X(f)|^2: (2, G + K + G, B), interior and whole.

    Args:
        tangents: along the generators' velocities, then along the controls. errors: gets E of this layer.
    """
    z, along = maps[layer.name], tangents[layer.name]
    straight, control = along[: len(velocities.generators)], along[len(velocities.generators) :]
    acts = velocities.group.spatial and layer.kind is Kind.map
    if acts:
        found = []
        kept = []
        for error, moved in velocities.errors(z, straight):
            found.append((_length(error), moved))
            kept += [error] if errors is not None else []
        errors_square, moved_square = (torch.stack(part) for part in zip(*found, strict=True))
    else:
        kept, errors_square = list(straight), _length(straight)
        moved_square = torch.zeros_like(errors_square)
    if errors is not None:
        errors[layer.name] = torch.stack(kept)
    each = torch.cat([errors_square, _length(control), moved_square])
    # A border, and what is next to it and so has the border in its gradient; of small maps, the border alone.
    ring = (2 if min(layer.shape[1:]) >= LARGE else 1) if acts else 0
    inner = each[..., ring : each.shape[-2] - ring, ring : each.shape[-1] - ring]
    return torch.stack([inner.sum((-2, -1)), each.sum((-2, -1))])


def _length(z: Tensor) -> Tensor:
    """|z|^2 over the channels: (..., C, h, w) -> (..., h, w)."""
    return z.square().sum(-3)  # much faster than a norm over channels


def _softened(maps: Maps, tangents: Maps, generators: int) -> Tensor:
    """|L_X softmax f|^2 of every generator, and the controls' mean: (G + 1, B). d softmax = p (dy - <p, dy>)."""
    p, dy = maps["logits"].flatten(1).softmax(-1), tangents["logits"].flatten(2)
    each = (p * (dy - (p * dy).sum(-1, keepdim=True))).square().sum(-1)
    return torch.cat([each[:generators], each[generators:].mean(0, keepdim=True)])


def _sharpened(velocities: Velocities, jacobian: Jacobian, x: Tensor) -> Tensor:
    """|J v_X|^2 and |J e_X|^2 of the logits of the images x as they are, and |v_X|^2: (3, G, B)."""
    v = velocities.images(x)
    change = jacobian(x, torch.cat([v, velocities.sharpening(x)]))[1]["logits"].square().sum((2, 3, 4))
    return torch.stack([*change.chunk(2), v.square().sum((2, 3, 4))])
