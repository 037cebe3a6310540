"""Spearman's rank correlation, plain, partial and within panels, with a bootstrap interval over clusters (no torch)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

from eqbench.stats import BLOCK, Array, bootstrap

PERMUTATIONS = 10**5


@dataclass(frozen=True)
class Correlation:
    """A rank correlation of `n` points from `clusters` independent sources.

    Attributes:
        value, lo, hi: the correlation and its 95 % interval; NaN where a variable is constant.
        p: two-sided, that it is 0: see `p_value`, of as many points as there are clusters, and for a panel `clustered`.
    """

    value: float
    lo: float
    hi: float
    p: float
    n: int
    clusters: int


def correlate(
    x: Sequence[float],
    y: Sequence[float],
    fixed: Sequence[float] | None = None,
    *,
    clusters: Sequence[str] | None = None,
    panel: tuple[Sequence[str], Sequence[str]] | None = None,
    count: int = 2000,
) -> Correlation:
    """How far the ranks of x and y agree: 1 in the same order, -1 in the opposite one.

    The interval is the expanded percentile one of `eqbench.stats`: whole clusters are drawn.

    Args:
        fixed: a third variable, whose ranks are held fixed: (r_xy - r_xz r_yz) / [(1 - r_xz^2)(1 - r_yz^2)]^(1/2).
        clusters: which source each point is from; None: each from its own.
        panel: whose each point is, and when, each with all times alike: ranks are then taken less their mean over both, so
            that neither what sets networks apart nor what all of them go through in training makes a correlation.

    >>> found = correlate(range(9), [0, 1, 4, 9, 16, 25, 36, 49, 64])
    >>> found.value, found.n, found.clusters
    (1.0, 9, 9)
    """
    variables = [np.asarray(v, float) for v in (x, y, *([] if fixed is None else [fixed]))]
    n = len(variables[0])
    owner = np.unique(np.arange(n) if clusters is None else np.asarray(clusters), return_inverse=True)[1]
    if panel is None:
        shape, parts = None, [_below(v) for v in variables]
    else:  # as a grid, a row a network; its ranks are those of all points: thousands anew in each resample would take minutes
        shape, order = (len(set(panel[0])), len(set(panel[1]))), np.lexsort((panel[1], panel[0]))
        owner, parts = owner[order], [stats.rankdata(v[order])[None] for v in variables]

    def ranks(w: Array) -> list[Array]:
        standard = _standardise(w, shape)
        return [standard(part if shape else w @ part.T) for part in parts]

    def statistic(w: Array) -> Array:
        found = ranks(w)
        return partial(*((w * a * b).sum(1) for i, a in enumerate(found) for b in found[:i]))

    value, lo, hi = (round(end, 12) for end in bootstrap(statistic, n, count, owner))
    units = int(owner.max()) + 1
    if panel is None or math.isnan(value):
        p = p_value(value, units - (fixed is not None))
    else:
        own, other, *held = (found[0] for found in ranks(np.ones((1, n))))
        for z in held:
            own, other = own - own @ z * z, other - other @ z * z
        p = clustered(np.bincount(owner, own * other).astype(np.float64), len(held))
    return Correlation(value, lo, hi, p, n, units)


def partial(xy: Array, xz: Array | None = None, yz: Array | None = None) -> Array:
    """A correlation with a third variable held fixed; NaN where that leaves nothing to vary.

    >>> partial(np.array([0.5]), np.array([0.5]), np.array([0.5])).round(9)
    array([0.33333333])
    """
    if xz is None or yz is None:
        return xy
    left = (1 - xz**2) * (1 - yz**2)
    return np.where(left > 1e-9, (xy - xz * yz) / np.sqrt(np.maximum(left, 1e-9)), np.nan).clip(-1, 1)


def p_value(r: float, n: int) -> float:
    """Two-sided, that a rank correlation of n points is 0: the share of `PERMUTATIONS` orders that are as far from 0.

    A partial one is distributed as a plain one of a point less (Fisher 1924, Metron 3:329). Student's t would do in the middle,
    but in the tails, where claims among many are decided, it is ten times too small for eight points. NaN for less than four.

    >>> round(p_value(0.9, 5), 2), p_value(1.0, 30) == 1 / (PERMUTATIONS + 1)  # by hand 10 of 120
    (0.08, True)
    """
    if n < 4 or math.isnan(r):
        return math.nan
    chance = _chance(n)
    return float(1 + len(chance) - np.searchsorted(chance, abs(r) - 1e-9)) / (1 + len(chance))


@lru_cache(maxsize=64)
def _chance(n: int) -> Array:
    """|r| of `PERMUTATIONS` random orders of n points, ascending; as many orders at once as `BLOCK` numbers hold."""
    ranks, random = np.arange(n) - (n - 1) / 2, np.random.default_rng(0)
    found, rows = np.empty(PERMUTATIONS), max(1, BLOCK // n)
    for start in range(0, PERMUTATIONS, rows):
        part = found[start : start + rows]
        part[:] = random.permuted(np.broadcast_to(ranks, (len(part), n)), axis=1) @ ranks
    return np.sort(np.abs(found) / (ranks @ ranks))


def clustered(parts: Array, held: int = 0) -> float:
    """Two-sided, that the sum of what independent clusters add to a correlation is 0, by Student's t over them.

    Liang & Zeger 1986, Biometrika 73:13, with one degree of freedom less for each variable `held` fixed.
    """
    df = len(parts) - 1 - held
    if df < 1 or not parts.std():
        return math.nan
    return float(2 * stats.t.sf(abs(parts.mean()) / parts.std(ddof=1) * math.sqrt(len(parts)), df))


def _below(v: Array) -> Array:
    """(n, n): whether each of n values (a row) stands above each other (a column): 1, or a half where they are equal.

    Times weights it gives the mid-ranks of a resample.
    """
    return (v[:, None] > v) + (v[:, None] == v) / 2


def _standardise(w: Array, shape: tuple[int, int] | None) -> Callable[[Array], Array]:
    """What takes ranks (B or 1, n) less their mean, over their norm, under weights (B, n); NaN if nothing is left.

    Args:
        shape: of n points in a grid; the means of its rows and of its columns are taken off instead.
    """
    total = w.sum(1, keepdims=True)
    grid = (-1, *shape) if shape else w.shape
    sums = [np.maximum(w.reshape(grid).sum(axis, keepdims=True), 1e-300) for axis in (1, 2)] if shape else []

    def standard(ranks: Array) -> Array:
        weighted = w * ranks
        mean = weighted.sum(1, keepdims=True) / total
        centred = ranks - mean
        for axis, weights in enumerate(sums, 1):
            within = weighted.reshape(grid).sum(axis, keepdims=True) / weights
            centred = (centred.reshape(grid) - (within - mean[..., None])).reshape(w.shape)
        norm = np.sqrt((w * centred**2).sum(1, keepdims=True))
        return centred / np.where(norm > 1e-9, norm, np.nan)

    return standard
