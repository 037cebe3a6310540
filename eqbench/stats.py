"""Intervals: the paired bootstrap over images or clusters of images, Student's t, the jackknife (no torch).

A bootstrap's interval is the expanded percentile one (Hesterberg 2015): percentiles at the levels that make the interval of
a mean as wide as Student's t. It was chosen by simulation on the statistics in use, with heavy-tailed images (true cover of
nominal 95 %; n = 16, 64, 256 units): root of a ratio of means 93, 94, 96 %, share 93, 93, 92 %, paired difference 93, 93,
95 %. Plain percentiles cover less from few units (90, 93, 96; 89, 92, 92; 90, 92, 95 %), and BCa less from all (89, 92, 95;
84, 88, 88; 87, 90, 93 %): its correction is itself estimated from the few images in the tail. tests/test_inference.py repeats it.
"""

import base64
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
LEVEL = 0.95
BLOCK = 2**23  # weights that are held at once: 64 MB
STORED = 500  # replicates that a cell keeps of a metric that boards rank or compare by: 2.7 KB of text, and a standard error to 3 %


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
    """A statistic of n images and its interval.

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
    with np.errstate(invalid="ignore", divide="ignore"):
        values = statistics(np.ones((1, n)))[0].astype(np.float64)
    drawn = samples(statistics, n, count, clusters)
    tail = 100 * _tail(n if clusters is None else len(np.unique(clusters)))
    ends = np.full((2, len(values)), np.nan)
    known = np.isfinite(drawn).any(0) & math.isfinite(tail)
    if known.any():
        ends[:, known] = np.nanpercentile(drawn[:, known], [tail, 100 - tail], axis=0)
    return values, ends[0], ends[1]


def samples(statistics: Statistic, n: int, count: int, clusters: NDArray[np.int64] | None = None) -> Array:
    """The values of k statistics on `count` resamples: (count, k). The first of them do not depend on how many there are."""
    names, owner = (None, slice(None)) if clusters is None else np.unique(clusters, return_inverse=True)
    units = n if names is None else len(names)
    rows = max(1, min(count, BLOCK // n))
    parts = []
    with np.errstate(invalid="ignore", divide="ignore"):
        for block, start in enumerate(range(0, count, rows)):
            parts.append(statistics(resamples(units, min(rows, count - start), block)[:, owner]))
    return np.concatenate(parts).astype(np.float64)


def replicates(statistic: Statistic, n: int, clusters: NDArray[np.int64] | None = None) -> dict[str, Any]:
    """What a cell keeps of a metric, so that its differences from other cells on the same images can be paired.

    Returns:
        `units`: how many images, or clusters of them, were resampled independently; `replicates`: the values on the first
        `STORED` resamples, base64 of little-endian float32. Both are fields of `results.Measure`.
    """
    drawn = samples(lambda w: statistic(w)[:, None], n, STORED, clusters)[:, 0]
    return {"units": n if clusters is None else len(np.unique(clusters)), "replicates": pack(drawn)}


def pack(drawn: Array) -> str:
    """Replicates as text, as a measure keeps them."""
    return base64.b64encode(drawn.astype("<f4").tobytes()).decode()


def unpack(text: str) -> Array:
    """The values that `replicates` stored.

    >>> x = np.array([0.25, 0.5, 3.0])
    >>> drawn = unpack(replicates(lambda w: w @ x / 3, 3)["replicates"])
    >>> bool(np.allclose(drawn, resamples(3, STORED) @ x / 3, rtol=1e-6))
    True
    """
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float64)


def _tail(units: int) -> float:
    """The share of the resamples beyond either end of the interval; NaN for a single unit, which says nothing of its error."""
    if units < 2:
        return math.nan
    return float(ndtr(-stdtrit(units - 1, (1 + LEVEL) / 2) * math.sqrt(units / (units - 1))))
