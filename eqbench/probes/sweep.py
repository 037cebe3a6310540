"""The error along one-parameter families of transformations, less what resampling alone does.

A curve X is the sweep of one generator, and has its name; whole shifts are `translation_x`, and half pixels, which need
band-limited images and so another reference, `translation_x_half`. Of each (lists of one length, ascending in t, with 0):

- `X_t`: the values of t, in the group's unit;
- `X_error`, `X_lo`, `X_hi`: E(t) corrected for resampling, and its interval over images;
- `X_raw`, `X_floor`, `X_null`: E(t) as it is, that of the round trip, and the corrected E(t) of shuffled pairs. The floor
  of diffeomorphisms is not finite: they are no group, and to be displaced back does not undo it;
- `X_out_of_gamut`, of groups of colours: the mean share of pixels with a channel outside [0, 1] at each t.

For diffeomorphisms there are those of eqbench.probes.stability beside.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from eqbench.errors import Unsupported
from eqbench.groups import Group, LieGroup
from eqbench.groups.affine import Affine, Linear
from eqbench.groups.colour import out_of_gamut
from eqbench.groups.diffeo import Diffeomorphisms
from eqbench.groups.translation import PHASES
from eqbench.metrics import METRICS
from eqbench.probes.base import Finding, Subject, another
from eqbench.probes.stability import relative_stability
from eqbench.probes.windows import PAD, REACH, Shift, Windows, shifting
from eqbench.results import Measure
from eqbench.schema import Sweep
from eqbench.stats import Array, Statistic, intervals, replicates

Curves = dict[str, Array]  # generator -> (resamples, values of t)
QUARTER_TURNS = np.pi / 2 * np.arange(1, 4)
CONSTANT = "the logits are the same for every image"


@dataclass(frozen=True)
class Path:
    """A sweep: transformations along one generator, and the reference that they share.

    Attributes:
        values: t, ascending, 0 among them.
        still: f(g_0 x), (n, classes).
        raw, floor, null: (n, values), |f(g_t x) - f(g_0 x)|^2 of each image, the same of the round trip g_-t g_t x, and
            |f(g_t x') - f(g_0 x)|^2 of another image x'.
    """

    values: Array
    still: Array
    raw: Array
    floor: Array
    null: Array

    def error(self, w: Array, squares: Array) -> Array:
        """E = [ sum_x squares(x, t) / sum_x |f(g_0 x) - mean|^2 ]^(1/2), 0 where a sum is negative: (B, values)."""
        centred = self.still - self.still.mean(0)
        spread = w @ (centred**2).sum(1) - ((w @ centred) ** 2).sum(1) / w.sum(1)
        spread = np.where(spread > 1e-14 * (self.still**2).sum(), spread, np.nan)  # not the rounding of equal logits
        return np.sqrt(np.maximum(w @ squares, 0) / spread[:, None])

    def corrected(self, w: Array) -> Array:
        """[max(E(t)^2 - floor(t)^2, 0)]^(1/2): (B, values)."""
        return self.error(w, self.raw - self.floor)


def run(subject: Subject, group: LieGroup, placebo: Group | None, conf: Sweep) -> Finding:
    """Measure one network along every generator of one group.

    Raises:
        Unsupported: fewer classes or images than a sweep needs, or images too small to shift.
        Failed: logits that are not finite.
    """
    paths = dict(path for generator in group.generators() for path in _paths(subject, group, generator))
    summaries = _summaries(group, paths)

    def statistics(w: Array) -> Array:
        curves = {X: path.corrected(w) for X, path in paths.items()}
        return np.concatenate([*curves.values(), *(summary(curves)[:, None] for summary in summaries.values())], 1)

    def column(i: int) -> Statistic:
        return lambda w: statistics(w)[:, i]

    values, lo, hi = intervals(statistics, subject.n, conf.resamples, subject.clusters)
    ones = np.ones((1, subject.n))
    floors = {X: path.error(ones, path.floor) for X, path in paths.items()}
    nulls = {X: path.error(ones, path.null - path.floor) for X, path in paths.items()}
    if isinstance(group, Diffeomorphisms):
        floors = {X: np.full_like(floor, np.nan) for X, floor in floors.items()}
    found, start = Finding({}), 0
    for X, path in paths.items():
        part = slice(start, start := start + len(path.values))
        shown = {"t": path.values, "error": values[part], "lo": lo[part], "hi": hi[part]}
        shown |= {"raw": path.error(ones, path.raw)[0], "floor": floors[X][0], "null": nulls[X][0]}
        if not group.spatial:
            shown["out_of_gamut"] = _out_of_gamut(subject, group, X, path.values.tolist())
        found.curves |= {f"{X}_{name}": numbers.tolist() for name, numbers in shown.items()}
    for i, (name, summary) in enumerate(summaries.items(), start):
        # Whole shifts are exact and shuffled pairs have no phase.
        floor, null = (None, None) if name == "phase_spread" else (summary(floors)[0], summary(nulls)[0])
        reason = None if math.isfinite(values[i]) else CONSTANT
        kept = replicates(column(i), subject.n, subject.clusters) if METRICS[name].rank else {}
        found.metrics[name] = Measure(values[i], lo[i], hi[i], subject.n, floor, null, reason, **kept)
    if isinstance(group, Diffeomorphisms):
        moved = np.sum([path.raw[:, 1:] for path in paths.values()], 0)
        power = float(sum((path.still**2).sum() for path in paths.values()))
        stability = relative_stability(subject, group, moved, power, conf.resamples)
        found = Finding(found.metrics | stability.metrics, found.curves | stability.curves)
    return found


def _summaries(group: LieGroup, paths: dict[str, Path]) -> dict[str, Callable[[Curves], Array]]:
    """The network's metrics as functions of its curves; a user's generators mean what they mean, whatever their names."""
    moved = {X: path.values != 0 for X, path in paths.items()}
    found: dict[str, Callable[[Curves], Array]] = {
        "sweep_error": lambda curves: np.mean([curve[:, moved[X]].mean(1) for X, curve in curves.items()], 0),
        "sweep_worst": lambda curves: np.max([curve[:, moved[X]].max(1) for X, curve in curves.items()], 0),
    }
    if "rotation" in paths and isinstance(group, Linear | Affine):
        turns = np.isclose(paths["rotation"].values[:, None], QUARTER_TURNS).any(1)
        found["sweep_quarter_turns"] = lambda curves: curves["rotation"][:, turns].mean(1)
    if axes := shifting(group):
        found["phase_spread"] = lambda curves: np.mean([largest_fall(curves[X][:, moved[X]]) for X in axes], 0)
    return found


def largest_fall(errors: Array) -> Array:
    """max_{s < t} (E(s) - E(t)) along the last axis, at least 0.

    New content makes the error grow with the shift; what makes it smaller again is a better phase.

    >>> largest_fall(np.array([[0.1, 0.5, 0.2, 0.6]])).tolist()
    [0.3]
    """
    return (np.maximum.accumulate(errors, -1) - errors).max(-1)


def _out_of_gamut(subject: Subject, group: LieGroup, generator: str, values: Sequence[float]) -> Array:
    """The mean share of pixels of g_t x with a channel outside [0, 1]: (values,)."""
    total = np.zeros(len(values))
    for batch in subject.batches(subject.size):
        x = batch.to(subject.device)
        total += torch.stack([out_of_gamut(group.act(x, (generator, t))).sum() for t in values]).cpu().numpy()
    return total / subject.n


class Returned(NamedTuple):
    """The round trip of an element (generator, t); `key` is that of its group, so that groups share what they share."""

    key: Hashable
    generator: str
    t: float


class Returning:
    """The action of round trips."""

    def __init__(self, group: LieGroup) -> None:
        self.group = group

    def act(self, x: Tensor, g: Returned, /) -> Tensor:
        return self.group.round_trip(x, (g.generator, g.t))


def _paths(subject: Subject, group: LieGroup, generator: str) -> Iterator[tuple[str, Path]]:
    """The curves of one generator: name, path. Translations are those of windows of a larger image.

    Raises:
        Unsupported: fewer classes or images than a sweep needs, or images too small to shift.
    """
    size, values = subject.size, sorted(group.sweep(generator, subject.size))
    moving = [t for t in values if t]
    if generator not in shifting(group):
        logits = subject.logits(size, group, [(generator, t) for t in values])
        still = values.index(0)
        back = [logits[still]] * len(moving)
        if not isinstance(group, Diffeomorphisms):
            back = subject.logits(
                size, Returning(group), [Returned(group.key((generator, t)), generator, t) for t in moving]
            )
        yield generator, _path(subject, values, logits, [*back[:still], logits[still], *back[still:]])
        return
    if REACH * size < 1:
        raise Unsupported(
            f"images of {size} px: translations go up to a seventh of the side, and need at least {1 / REACH:.0f} px"
        )
    near = [t for t in moving if t <= REACH * size]
    whole, half = ([0.0, *(t for t in near if (t % 1 == 0) is flag)] for flag in (True, False))
    whole += [float(PHASES)] if whole[-1] == PHASES - 1 else []  # back at phase 0
    windows = Windows(size, math.ceil(whole[-1]))
    logits = subject.logits(size + windows.margin, windows, [Shift(generator, t) for t in whole])
    yield generator, _path(subject, whole, logits, logits[:1] * len(logits))
    windows = Windows(size, math.ceil(half[-1]), PAD)
    logits = subject.logits(size + windows.margin, windows, [Shift(generator, t, blurred=True) for t in half])
    trips = [Shift(generator, t % 1, blurred=True, returned=t > 0) for t in half]
    yield f"{generator}_half", _path(subject, half, logits, subject.logits(size + windows.margin, windows, trips))


def _path(subject: Subject, values: Sequence[float], moved: Sequence[Tensor], back: Sequence[Tensor]) -> Path:
    """The squares of a path from its logits f(g_t x) and f(g_-t g_t x), (n, classes) for each t.

    Raises:
        Unsupported: fewer classes or images than a sweep needs.
    """
    still = moved[values.index(0)]
    if min(still.shape) < 2:
        raise Unsupported(f"logits {tuple(still.shape)}: a sweep needs at least two images and two classes")
    other = another(subject.n, subject.clusters)

    def squares(logits: Iterable[Tensor]) -> Array:
        return torch.stack([(y - still).square().sum(1) for y in logits], 1).numpy()

    return Path(np.array(values), still.numpy(), squares(moved), squares(back), squares(y[other] for y in moved))
