"""Intervals: the paired percentile bootstrap over images or clusters of images, Student's t, the jackknife (no torch)."""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
LEVEL = 0.95
BLOCK = 2**23  # weights that are held at once: 64 MB


@lru_cache(maxsize=4)
def resamples(n: int, count: int, seed: int = 0) -> Array:
    """How often each of n units is drawn in each of `count` bootstrap resamples: (count, n), rows sum to n.

    The draws depend on the arguments alone, so that every model, group and metric is resampled alike: differences
    between them are paired (Efron & Tibshirani 1993, ch. 8).
    """
    draws = np.random.default_rng(seed).integers(n, size=(count, n))
    return np.stack([np.bincount(row, minlength=n) for row in draws]).astype(np.float64)


def bootstrap(
    statistic: Statistic, n: int, count: int, clusters: NDArray[np.int64] | None = None
) -> tuple[float, float, float]:
    """A statistic of n images and its percentile interval.

    Args:
        statistic: maps weights (B, n) on the images to values (B,).
        n: images. count: resamples.
        clusters: (n,), equal for images that depend on each other: whole clusters are drawn then (Davison & Hinkley
            1997, sec. 3.8); None: images are.

    Returns:
        (value at unit weights, lower, upper end of the 95 % interval); NaN where the statistic is undefined.

    >>> x = np.arange(1000.0)
    >>> value, lo, hi = bootstrap(lambda w: w @ x / w.sum(-1), 1000, 2000)
    >>> standard_error = x.std() / 1000**0.5
    >>> bool(value == x.mean() and abs((hi - lo) / (2 * 1.96 * standard_error) - 1) < 0.05)
    True
    """
    value, lo, hi = intervals(lambda w: statistic(w)[:, None], n, count, clusters)
    return float(value[0]), float(lo[0]), float(hi[0])


def student(value: float, error: float, n: int) -> tuple[float, float, float]:
    """A value of n independent samples with its standard error, as (value, lower, upper end) by Student's t.

    One sample says nothing of its error: its interval is the whole line.
    """
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * error if n > 1 else math.inf
    return value, value - half, value + half


def mean_interval(samples: Array) -> tuple[float, float, float]:
    """The mean of independent samples (n,), n of at least 2, and its interval by Student's t.

    >>> [round(x, 4) for x in mean_interval(np.array([1.0, 2.0, 3.0]))]  # 4.3027 / sqrt(3)
    [2.0, -0.4841, 4.4841]
    """
    return student(float(samples.mean()), float(samples.std(ddof=1)) / len(samples) ** 0.5, len(samples))


def jackknife(value: float, left_out: Array) -> tuple[float, float, float]:
    """A statistic and its interval by Student's t, from its values with one of n parts left out, (n,) (Efron & Stein 1981).

    >>> x = np.array([1.0, 2.0, 3.0])
    >>> bool(np.allclose(jackknife(x.mean(), (x.sum() - x) / 2), mean_interval(x)))  # of a mean it is the usual one
    True
    """
    n = len(left_out)
    return student(value, math.sqrt((n - 1) / n * float(np.square(left_out - left_out.mean()).sum())), n)


def at_ones(statistic: Statistic, n: int) -> float:
    """A statistic of n images, each once; NaN where it is undefined."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(statistic(np.ones((1, n)))[0])


def intervals(
    statistics: Statistic, n: int, count: int, clusters: NDArray[np.int64] | None = None
) -> tuple[Array, Array, Array]:
    """`bootstrap` of k statistics at once, e.g. the points of a curve, all on the same resamples.

    Args:
        statistics: maps weights (B, n) on the images to values (B, k).
        n, count, clusters: as in `bootstrap`.

    Returns:
        (values at unit weights, lower, upper ends of the 95 % intervals), (k,) each.
    """
    names, owner = (None, slice(None)) if clusters is None else np.unique(clusters, return_inverse=True)
    units = n if names is None else len(names)
    rows = max(1, min(count, BLOCK // n))
    with np.errstate(invalid="ignore", divide="ignore"):
        values = statistics(np.ones((1, n)))[0].astype(np.float64)
        samples = np.empty((count, len(values)))
        for block, start in enumerate(range(0, count, rows)):
            part = samples[start : start + rows]
            part[:] = statistics(resamples(units, len(part), block)[:, owner])
    tail = 50 * (1 - LEVEL)
    ends = np.full((2, len(values)), np.nan)
    known = np.isfinite(samples).any(0)
    ends[:, known] = np.nanpercentile(samples[:, known], [tail, 100 - tail], axis=0)
    return values, ends[0], ends[1]
