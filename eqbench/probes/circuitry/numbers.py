"""The numbers of the circuits probe: statistics of the units of each layer, with intervals over units."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eqbench.probes.circuitry.units import Census
from eqbench.probes.circuitry.weights import Products, cosine
from eqbench.results import Measure
from eqbench.stats import LEVEL, Array, Statistic, resamples

NOTHING = "no weight other than 0 that g moves: nothing can be compared"


@dataclass(frozen=True)
class Strand:
    """A metric of one layer, as a function of weights on its units.

    Attributes:
        statistic: maps weights (B, units) to values (B,).
        owner: (units,), equal for units of one family: families are resampled whole.
        share: the layer's share in the network's mean.
    """

    statistic: Statistic
    owner: NDArray[np.int64]
    share: float = 1.0

    @property
    def value(self) -> float:
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(self.statistic(np.ones((1, len(self.owner))))[0])


def weight_strands(
    products: Sequence[Products], placebo: Sequence[Products], owner: NDArray[np.int64], parameters: int
) -> dict[str, Strand]:
    """S = cos(W, gW) of matched units, of what g moves, and the latter less the placebo's."""
    if not products:
        return {}
    matched, moved = [p.matched for p in products], [p.moved for p in products]
    found = {
        "weight_symmetry": Strand(lambda w: cosine(matched, w), owner, parameters),
        "regular_symmetry": Strand(lambda w: cosine(moved, w), owner),
    }
    if placebo:
        other = [p.moved for p in placebo]
        found["weight_gap"] = Strand(lambda w: cosine(moved, w) - cosine(other, w), owner)
    return found


def census_strands(census: Census, given: Census | None, parameters: int, order: int) -> dict[str, Strand]:
    """Shares of units, and Distill's formula: the share of weights that families make redundant.

    P_l r_l r_{l-1} (K_l - 1) / K_l, r the share of units in families, K = sum over families of units / families.

    Args:
        given: of the layer's inputs; None: the colours of the image. order: |G|, the largest family.
    """
    size = np.minimum(census.size, order)
    family, fixed = (size >= 2).astype(float), (size == 1).astype(float)
    copies = family / np.maximum(size, 1)
    before = 0.0 if given is None else float((given.size >= 2).mean())

    def redundancy(w: Array) -> Array:
        units, families = w @ family, w @ copies
        return before * units / w.sum(1) * np.where(units > 0, 1 - families / np.maximum(units, 1e-300), 0.0)

    owner = families_of(census, order)
    return {
        "family_share": Strand(lambda w: (w @ family) / w.sum(1), owner),
        "fixed_share": Strand(lambda w: (w @ fixed) / w.sum(1), owner),
        "group_law": Strand(lambda w: (w @ census.lawful) / w.sum(1), owner),
        "redundancy": Strand(redundancy, owner, parameters),
    }


def families_of(census: Census, order: int) -> NDArray[np.int64]:
    """A number for each unit, shared in families; units in larger cycles, which are chance, have their own."""
    real = (census.size >= 2) & (census.size <= order)
    return np.unique(np.where(real, census.family, len(real) + np.arange(len(real))), return_inverse=True)[1]


def shares(census: Census) -> dict[str, float]:
    """The census in shares of units, which add up to 1; `orbit4` are families of four, `other` of any other size."""
    kinds = {"fixed": census.size == 1, "pair": census.size == 2, "orbit4": census.size == 4}
    kinds["unmatched"] = census.size == 0
    kinds["other"] = ~np.any(list(kinds.values()), 0)
    return {kind: round(float(units.mean()), 4) for kind, units in kinds.items()}


def measures(
    strands: dict[str, Strand], nulls: dict[str, Strand], images: int, count: int
) -> tuple[Measure, dict[str, Measure]]:
    """The network's metric and each layer's; intervals by resampling the units within each layer.

    The network's is the mean of its layers, weighted by `share`; layers where it is undefined do not count.
    """
    samples, layers, total, chance = np.zeros(count), {}, Sum(), Sum()
    for name, strand in strands.items():
        value, null = strand.value, nulls[name].value
        if not np.isfinite(value):
            layers[name] = Measure(None, n=images, reason=NOTHING)
            continue
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn = strand.statistic(resamples(int(strand.owner.max()) + 1, count)[:, strand.owner])
        drawn = np.where(np.isfinite(drawn), drawn, value)
        layers[name] = Measure(value, *_ends(drawn), images, null=null)
        samples += strand.share * drawn
        total.add(value, strand.share)
        chance.add(null, nulls[name].share)
    if not total.share:
        return Measure(None, n=images, reason=NOTHING), layers
    return Measure(total.mean, *_ends(samples / total.share), images, null=chance.mean), layers


@dataclass
class Sum:
    """A weighted mean in the making, of what is finite."""

    total: float = 0.0
    share: float = 0.0

    def add(self, value: float, share: float) -> None:
        if np.isfinite(value):
            self.total, self.share = self.total + share * value, self.share + share

    @property
    def mean(self) -> float:
        return self.total / self.share if self.share else float("nan")


def _ends(samples: Array) -> tuple[float, float]:
    tail = 50 * (1 - LEVEL)
    lo, hi = np.percentile(samples, [tail, 100 - tail])
    return float(lo), float(hi)
