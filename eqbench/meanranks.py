"""Ranks: under one group by interval separation; over several, mean ranks with Friedman's test and Nemenyi's (no torch)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from scipy import stats

from eqbench.metrics import METRICS
from eqbench.stats import LEVEL, Array


def ranks(intervals: Sequence[tuple[float, float]], higher_is_better: bool) -> list[tuple[int, int]]:
    """Best and worst rank that the intervals leave open; a board's `rank` is the best.

    rank = 1 + #{others whose interval lies entirely on the better side}; worst = n - #{entirely on the worse side}.
    Intervals that touch do not separate, and models that are not separated may share a rank.

    >>> ranks([(0.1, 0.2), (0.15, 0.3), (0.5, 0.6)], higher_is_better=False)
    [(1, 2), (1, 2), (3, 3)]
    """
    ordered = [(-hi, -lo) for lo, hi in intervals] if higher_is_better else list(intervals)
    return [
        (1 + sum(hi < low for _, hi in ordered), len(ordered) - sum(lo > high for lo, _ in ordered))
        for low, high in ordered
    ]


@dataclass(frozen=True)
class MeanRanks:
    """The mean ranks of models over groups (Demšar 2006, JMLR 7:1).

    Attributes:
        metric, data: what was ranked, on which images. groups: the blocks.
        ranks: model -> mean rank, the best (1 is best) first; models complete on all groups alone.
        p: of Friedman's test in Iman and Davenport's form, that all models are alike.
        distance: Nemenyi's critical difference: mean ranks further apart differ, if p is below 0.05 at all.
    """

    metric: str
    data: str
    groups: tuple[str, ...]
    ranks: dict[str, float]
    p: float
    distance: float

    def apart(self, one: str, other: str) -> bool:
        """Whether two models' mean ranks differ, at 5 % over all pairs."""
        return self.p < 1 - LEVEL and abs(self.ranks[one] - self.ranks[other]) > self.distance


def friedman(values: Array) -> tuple[Array, float, float]:
    """Mean ranks, p and critical difference of k >= 3 models in N >= 2 blocks, from (N, k) values of which lower is better.

    F = (N - 1) chi^2 / (N (k - 1) - chi^2) with k - 1 and (k - 1)(N - 1) degrees of freedom; CD = q sqrt(k (k + 1) / 6 N).
    """
    blocks, models = values.shape
    ranks = stats.rankdata(values, axis=1).mean(0)
    chi = float(stats.friedmanchisquare(*values.T).statistic)
    left = blocks * (models - 1) - chi
    if left > 1e-9:
        p = float(stats.f.sf((blocks - 1) * chi / left, models - 1, (models - 1) * (blocks - 1)))
    else:  # all blocks agree: as often as each gives the order of the first
        p = math.exp(-(blocks - 1) * math.lgamma(models + 1))
    q = float(stats.studentized_range.ppf(LEVEL, models, math.inf)) / math.sqrt(2)
    return ranks, 1.0 if math.isnan(p) else p, q * math.sqrt(models * (models + 1) / (6 * blocks))


def mean_ranks(table: pd.DataFrame) -> list[MeanRanks]:
    """One for each metric, data set and number of images that a board ranks in two groups or more, for three models or more.

    Args:
        table: the wide table of a board.
    """
    found = []
    ranked = table[table["ranked_by"].notna()]
    for key, rows in ranked.groupby(["data", "ranked_by"], sort=False):
        data, metric = map(str, key)
        groups = list(dict.fromkeys(rows["group"]))
        for _, own in rows[rows["rank"].notna()].groupby("n_images"):
            values = own.pivot(index="group", columns="model", values=metric).reindex(groups).dropna(axis=1)
            if len(groups) < 2 or values.shape[1] < 3:
                continue
            sign = -1 if METRICS[metric].higher_is_better else 1
            ranks, p, distance = friedman(sign * values.to_numpy())
            order = sorted(zip(ranks.tolist(), values.columns, strict=True))
            found.append(MeanRanks(metric, data, tuple(groups), {model: rank for rank, model in order}, p, distance))
    return found
