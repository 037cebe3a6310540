"""The ladder of representations: how far f(gx) is from rho_g f(x) in a layer, for four rho_g from fixed to fitted.

Let a = f_l(x) and b = R_g^-1 f_l(gx), R_g the movement of a map's positions. A rung is what is put in the place of b:
R_g^-1 a (trivial: an invariant layer), a (spatial), P a (permuted: channels change places too), W a (fitted: they mix).
P and W are found on one half of the images and judged on the other.
"""

import math
from collections import defaultdict
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eqbench.errors import Unsupported
from eqbench.features import Kind, Layer
from eqbench.groups import FiniteGroup
from eqbench.probes.ladders.matching import Moments, match, reciprocal
from eqbench.probes.ladders.positions import Positions
from eqbench.probes.ladders.similarity import NormalisedVariance, gram, hsic

RUNGS = ("trivial", "spatial", "permuted", "fitted")
COMPARED = 5  # images of a batch, at least: of four, HSIC_1 is the same when these are exchanged two by two
CHANNELS = 4096  # of a layer, at most: matching them takes C² moments and C³ steps
CHANCE = "chance"  # stands for the first generator on images that do not belong together


class Fit(NamedTuple):
    """The maps from a to b, both less their channels' means: b_j ~ a_{partner[j]}, b ~ W a."""

    partner: Tensor  # (C,)
    mix: Tensor  # (C, C), the transpose of W


class Seen(NamedTuple):
    """What is kept of the maps f(gx) of a batch of held-out images."""

    plain: Tensor  # f(gx) at positions that change from image to image, less its channels' means: (B, k, C)
    pulled: Tensor  # R_g^-1 f(gx), alike
    few_plain: Tensor  # f(gx) at a few positions that all images share
    few_pulled: Tensor  # R_g^-1 f(gx) there
    gram: Tensor  # inner products of the images: (B, B)


class Ladder:
    """The ladder of one layer: `take` the maps of a batch, `fit` to them; `solve`; `take` others, `test` on them.

    Attributes:
        errors: for each generator and `CHANCE`, batch by batch, (1 + rungs, images): |b - mean b|², then |b - rung|², each
            summed over channels and positions.
        hsic: for each generator and `CHANCE`, batch by batch, (3, 1): HSIC_1 of (a, b), (a, a), (b, b) times images.
        fits: for each generator and `CHANCE`, what `solve` found.
        moved, pulled: normalised variance of f(gx), and of R_g^-1 f(gx).
    """

    def __init__(self, layer: Layer, group: FiniteGroup, size: int, ridge: float, device: torch.device) -> None:
        """Plan the ladder of one layer.

        Args:
            size: of the images, pixels. ridge: as in conf/probe/orbit.yaml.

        Raises:
            Unsupported, UserError: too many channels, or the group does not move the cells of maps of this shape.
        """
        if layer.shape[0] > CHANNELS:
            raise Unsupported(f"{layer.shape[0]} channels: more than {CHANNELS} are not matched")
        self.layer, self.ridge, self.generators = layer, ridge, group.generators()
        moves = group if group.spatial and layer.kind is Kind.map else None
        self.positions = Positions(layer.shape, moves, size, device)
        self.errors: dict[Any, list[Tensor]] = defaultdict(list)
        self.hsic: dict[Any, list[Tensor]] = defaultdict(list)
        self.fits: dict[Any, Fit] = {}
        self.moved, self.pulled = NormalisedVariance(), NormalisedVariance()
        self._fitting: dict[Any, Tensor] = {}
        self._seen: dict[Any, Seen] = {}
        self._means: dict[Any, Tensor] = {}
        self._moments, self._chance = Moments(), Moments()

    def take(self, maps: Tensor, g: Any | None, start: int) -> None:
        """F(gx) of the batch at hand: (B, C, h, w); the identity, None, comes first.

        Args:
            start: how many images came before this batch.
        """
        pulled = self.positions.plain(maps, start) if g is None else self.positions.pulled(maps, g, start)
        if not self._means:
            self._fitting[g] = pulled
            return
        mean = self._means[g]
        plain = pulled if g is None else self.positions.plain(maps, start)
        likeness = gram(self.positions.compared(maps))
        self._seen[g] = Seen(plain - mean, pulled - mean, *self.positions.few(maps, g), likeness)

    def fit(self, left: Tensor, right: Tensor) -> None:
        """Add the batch at hand to the moments; `left` and `right` index images of it that do not belong together."""
        a, *others = self._fitting.values()
        self._moments.update(_maps(a), _maps(torch.cat([a, *others], 2)))
        if len(left):
            self._chance.update(_maps(a[left]), _maps(others[0][right]))

    def solve(self) -> None:
        """Find P and W for every generator, and for chance.

        P = argmin E |b - P a|², where a channel leaves its place only for a gain above the universal threshold
        (2 log C / N)^½ of N positions (Donoho & Johnstone 1994). W = P + D with D = argmin E |b - P a - D a|² +
        ridge C / N |D diag(var a)^½|²: shrunk towards P in the proportion that is optimal for random maps (Dobriban & Wager
        2018), so that it falls back to the permuted rung where there are too few images to tell.
        """
        found, channels, dtype = self._moments, self.layer.shape[0], self._fitting[None].dtype
        keys: list[Any] = [None, *self.generators]
        self._means = dict(zip(keys, found.mean_b.to(dtype).split(channels), strict=True))
        crosses = dict(zip(keys, found.cross.split(channels, 1), strict=True))  # E a b^T
        variances = dict(zip(keys, found.var_b.split(channels), strict=True))
        if self._chance.count:
            crosses[CHANCE], variances[CHANCE] = self._chance.cross, self._chance.var_b
        own = crosses.pop(None)

        threshold = math.sqrt(2 * math.log(channels) / found.count)
        gains = {
            key: cross + threshold * (found.var_a * variances[key]).sqrt().diag() for key, cross in crosses.items()
        }
        partners = {key: match(gain).argsort().to(own.device) for key, gain in gains.items()}  # b_j ~ a_partner[j]

        scale = reciprocal(found.var_a, found.mean_a)[:, None]
        penalised = scale * own * scale.mT
        penalised.diagonal().add_(self.ridge * channels / found.count)
        rest = torch.cat([cross - own[:, partners[key]] for key, cross in crosses.items()], 1)
        mixes = (scale * torch.linalg.solve(penalised, scale * rest)).to(dtype)
        for (key, partner), mix in zip(partners.items(), mixes.split(channels, 1), strict=True):
            mix[partner, torch.arange(channels, device=mix.device)] += 1
            self.fits[key] = Fit(partner, mix)
        del self._moments, self._chance, self._fitting

    def test(self, left: Tensor, right: Tensor) -> None:
        """Judge the rungs on the batch at hand; `left` and `right` as in `fit`."""
        a, *moving = self._seen.values()
        for g, b in zip(self.generators, moving, strict=True):
            self._judge(g, a.plain, b.plain, b.pulled)
            self._correlate(g, a.gram, b.gram)
        b = moving[0]
        if CHANCE in self.fits and len(left):
            self._judge(CHANCE, a.plain[left], b.plain[right], b.pulled[right])
            self._correlate(CHANCE, a.gram[left][:, left], b.gram[right][:, right])
        self.moved.update([seen.few_plain for seen in self._seen.values()])
        self.pulled.update([seen.few_pulled for seen in self._seen.values()])

    @cached_property
    def constant(self) -> bool:
        """Whether the layer is the same for every held-out image, up to rounding."""
        return self.moved.constant

    def _judge(self, key: Any, a: Tensor, c: Tensor, b: Tensor) -> None:
        """The energy of b, and of what each rung leaves of it; a, c = f(gx) and b are less their channels' means."""
        fit = self.fits[key]
        mixed = torch.addmm(b.flatten(0, 1), a.flatten(0, 1), fit.mix, alpha=-1).view_as(b)
        found = (b, c - a, b - a, b - a.index_select(2, fit.partner), mixed)
        self.errors[key].append(torch.stack([torch.linalg.vector_norm(z, dim=(1, 2)) for z in found]).double().square())

    def _correlate(self, key: Any, k: Tensor, l: Tensor) -> None:  # noqa: E741
        if len(k) >= COMPARED:
            self.hsic[key].append(len(k) * hsic(torch.stack([k, k, l]), torch.stack([l, k, l]))[:, None])


def _maps(rows: Tensor) -> Tensor:
    """(B, k, C) as maps (B, C, 1, k)."""
    return rows.mT[:, :, None]
