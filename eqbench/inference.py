"""From numbers to claims: images and seeds in one error, paired contrasts, Holm, detectable differences (no torch).

An error has two levels. Images: the variance of the seeds' mean over the bootstrap replicates that its cells keep, which are
of the same resamples for every cell on the same images, so that contrasts are paired. Seeds: the variance between seeds, over
their number; their images are the same, so what the replicates say of image x seed is in both and is taken off once. Two or
three seeds give a variance that Student's t cannot repair (by simulation 87 % cover of nominal 95 % at two seeds), so it
is moderated by that of the board's other models (Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3:3; 94 to 97 %). Degrees of
freedom are Satterthwaite's. One seed has no second level: its interval is over images alone, at these weights.

Cells without replicates (of other images, or of an older version) leave the covariance open: the widest error is taken.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.optimize import brentq
from scipy.special import digamma, polygamma, stdtrit

from eqbench.results import Measure
from eqbench.stats import LEVEL, STORED, Array, unpack

POWER = 0.8  # of the comparison that finds a detectable difference


@dataclass(frozen=True)
class Spread:
    """How far seeds lie apart on a board: the variance of all its models, how many degrees of freedom that is worth beside
    a model's own (more the more alike the models are), and how many there are in all.
    """

    variance: float = 0.0
    prior: float = 0.0
    total: float = 0.0

    def moderated(self, values: Sequence[float]) -> tuple[float, float]:
        """The variance between the seeds of one model, and its degrees of freedom."""
        own, df = variance(values), len(values) - 1
        if math.isinf(self.prior):
            return self.variance, max(self.total, df)
        return (self.prior * self.variance + df * own) / (self.prior + df), max(min(self.prior + df, self.total), df)


def variance(values: Sequence[float]) -> float:
    """The unbiased variance of two numbers or more; fast for the few seeds that there are."""
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)


def spread(networks: Iterable[Sequence[float]]) -> Spread:
    """The spread of seeds, from the values of each model's; models of one seed say nothing of it.

    The prior degrees of freedom fit the scatter of log variances (Smyth 2004, eq. 10); the variance is the models' mean,
    not his geometric one, which left out 3 % of the cover where models' variances differ fourfold.
    """
    known = [(variance(values), len(values) - 1) for values in networks if len(values) > 1]
    if not known:
        return Spread()
    own, df = np.array(known, float).T
    pooled, total, some = float(df @ own / df.sum()), float(df.sum()), own > 0
    if some.sum() < 2:
        return Spread(pooled, 0.0, total)
    half = df[some] / 2
    logs = np.log(own[some]) - digamma(half) + np.log(half)
    excess = float(logs.var(ddof=1) - polygamma(1, half).mean())
    if excess < 1e-6:
        return Spread(pooled, math.inf, total)
    return Spread(pooled, 2 * math.exp(brentq(lambda x: polygamma(1, math.exp(x)) - excess, -18, 18)), total)


@dataclass(frozen=True)
class Sample:
    """One number of one network over its seeds, and what its error is made of.

    Attributes:
        value: mean over seeds. draws: its bootstrap replicates, (B,), or None.
        image, interaction, seed: variances of the mean: over images; the part of it that is image x seed; between seeds.
        units: images, or clusters of them. df: degrees of freedom of `seed`. seeds: how many.
    """

    value: float
    draws: Array | None
    image: float
    interaction: float = 0.0
    seed: float = 0.0
    units: float = math.inf
    df: float = math.inf
    seeds: int = 1


def sample(measures: Sequence[Measure], around: Spread | None = None) -> Sample | None:
    """A network's measures, one a seed, as one sample; None where a seed has no value or no interval."""
    values = [measure.value for measure in measures if measure.value is not None]
    widths = [m.hi - m.lo for m in measures if m.lo is not None and m.hi is not None]
    if not measures or not len(values) == len(widths) == len(measures):
        return None
    seeds, mean = len(values), sum(values) / len(values)
    between, df = (around or Spread()).moderated(values) if seeds > 1 else (0.0, math.inf)
    texts = [measure.replicates for measure in measures if measure.replicates]
    units = {measure.units for measure in measures}
    if len(texts) == seeds and len(units) == 1 and (only := units.pop() or 0) > 1:
        drawn = np.stack([unpack(text) for text in texts])
        if np.isfinite(drawn).all():
            own, middle, unbiased = drawn - mean, drawn.mean(0), only / (only - 1)
            apart = float((own - own.mean(0)).var(1, ddof=1).sum()) / max(seeds - 1, 1) / seeds
            image = float(middle.var(ddof=1)) * unbiased
            return Sample(mean, middle, image, apart * unbiased, between / seeds, only, df, seeds)
    image = (sum(widths) / seeds / 2 / float(_quantile((1 + LEVEL) / 2, math.inf))) ** 2
    return Sample(mean, None, image, 0.0, between / seeds, math.inf, df, seeds)


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error, Student's t degrees of freedom, and whether images were paired."""

    value: float
    error: float
    df: float
    paired: bool

    @property
    def ends(self) -> tuple[float, float]:
        """Its 95 % interval."""
        return self.among(1)

    def among(self, claims: int) -> tuple[float, float]:
        """Its interval where it was chosen among so many, which all hold together at 95 % (Bonferroni)."""
        half = float(_quantile(1 - (1 - LEVEL) / 2 / claims, self.df)) * self.error
        return self.value - half, self.value + half

    @property
    def p(self) -> float:
        """Two-sided, that it is 0; NaN where nothing varies."""
        if self.error == 0:
            return math.nan
        return float(2 * stats.t.sf(abs(self.value) / self.error, self.df))


def contrast(*terms: tuple[float, Sample]) -> Estimate:
    """A weighted sum of samples, e.g. trained minus untrained, or one model minus another.

    >>> one = sample([Measure(0.5, 0.4, 0.6)]), sample([Measure(0.2, 0.1, 0.3)])
    >>> found = contrast((1, one[0]), (-1, one[1]))
    >>> found.paired, [round(end, 6) for end in found.ends]  # the widest interval that the two leave open
    (False, [0.1, 0.5])
    """
    draws = [weight * own.draws for weight, own in terms if own.draws is not None]
    units = {own.units for _, own in terms}
    paired = len(draws) == len(terms) and len(units) == 1
    if paired:
        images = units.pop()
        image = float(np.sum(draws, 0).var(ddof=1)) * images / (images - 1)
    else:
        images = math.inf
        image = sum(abs(weight) * math.sqrt(own.image) for weight, own in terms) ** 2
    apart = sum(weight**2 * own.interaction for weight, own in terms)
    between = [(weight**2 * own.seed, own.df) for weight, own in terms]
    scatter = sum(seed**2 / df for seed, df in between)
    error, df = _total(image, apart, sum(seed for seed, _ in between), scatter, images)
    return Estimate(sum(weight * own.value for weight, own in terms), float(error), float(df), paired)


def _total(image: Array | float, apart: Array | float, between: Array | float, scatter: Array | float,
           units: Array | float) -> tuple[Array, Array]:  # fmt: skip
    """Standard error and Satterthwaite's degrees of freedom; scatter: sum of squared seed variances over theirs.

    A variance over replicates is as uncertain as their number makes it, beside that of the images.
    """
    common = np.maximum(np.asarray(image) - apart, 0.0)
    whole = common + between
    with np.errstate(divide="ignore", invalid="ignore"):
        df = whole**2 / (common**2 * (1 / (np.asarray(units) - 1) + np.isfinite(units) / (STORED - 1)) + scatter)
    return np.sqrt(np.maximum(whole, image)), np.where(np.isnan(df), math.inf, df)


def detectable(samples: Sequence[Sample]) -> float:
    """The true difference of two models that a comparison at 5 % finds in `POWER` of all cases; median over their pairs.

    (t_0.975 + t_0.8) x the standard error of their difference (Bloom 1995, Eval. Rev. 19:547); NaN for fewer than two.
    """
    if len(samples) < 2:
        return math.nan
    deviation = np.sqrt([own.image for own in samples])
    covariance = -np.outer(deviation, deviation)  # the widest, where images are not paired
    units = np.array([own.units for own in samples])
    drawn = np.array([own.draws is not None for own in samples])
    if drawn.sum() > 1:
        paired = np.cov(np.stack([own.draws for own in samples if own.draws is not None]))
        covariance[np.ix_(drawn, drawn)] = paired * (units[drawn] / (units[drawn] - 1))[:, None]
    image = deviation[:, None] ** 2 + deviation**2 - 2 * covariance
    apart, between, scatter = (
        np.add.outer(part, part)
        for part in np.array([(own.interaction, own.seed, own.seed**2 / own.df) for own in samples]).T
    )
    error, df = _total(image, apart, between, scatter, np.minimum.outer(units, units))
    found = (_quantile((1 + LEVEL) / 2, df) + _quantile(POWER, df)) * error
    return float(np.median(found[np.triu_indices(len(samples), 1)]))


def _quantile(share: float, df: Array | float) -> Array:
    """Of Student's t; infinitely many degrees of freedom are as good as 10^8."""
    return np.asarray(stdtrit(np.minimum(df, 1e8), share))


def holm(p: Sequence[float]) -> Array:
    """p-values adjusted for how many there are: claims below 0.05 are all true in 95 % of boards (Holm 1979, Scand. J. Stat.).

    >>> holm([0.01, 0.04, math.nan, 0.03]).round(6).tolist()
    [0.03, 0.06, nan, 0.06]
    """
    found = np.array(p, float)
    order = np.argsort(found)[: int(np.isfinite(found).sum())]
    steps = found[order] * np.arange(len(order), 0, -1)
    found[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return found
