"""Networks that differ in how training was told of a symmetry, and in nothing else: treated minus plain (no torch).

A treatment is an augmentation by a group, or a penalty on asymmetry under one; networks are comparable where architecture,
arguments, input size and all other keys of the recipe are the same. Images are paired, seeds are not: a treated network
shares its initial weights with the plain one of the same seed, but training soon forgets them.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pandas as pd

from eqbench import groups
from eqbench.cells import Cells
from eqbench.inference import Estimate, contrast, holm
from eqbench.lineage import PLAIN, Kind
from eqbench.metrics import ACCURACY, METRICS, SHARES, Metric
from eqbench.pooling import Row
from eqbench.schema import UNGROUPED
from eqbench.stats import LEVEL

if TYPE_CHECKING:
    from eqbench.leaderboard import Board

VERDICTS = ("as expected", "against expectation", "no evidence", "a change", "no change to be seen")
ALONE = "one seed"  # in place of a verdict: what another training would give is not known
COLUMNS = ["architecture", "plain", "treated", "treatment", "data", "group", "metric", "value_plain", "value_treated"]
COLUMNS += ["difference", "lo", "hi", "p", "holm", "paired", "n_seeds_plain", "n_seeds_treated", "expected", "verdict"]


@dataclass(frozen=True)
class Contrast:
    """One number of a treated network minus that of the plain one.

    Attributes:
        seeds: of the plain and of the treated one. difference: its interval and p, that there is none, are over images and
            seeds; where one of the two has a single seed, over images alone, at these weights.
        holm: its p, adjusted for all contrasts of the board that `claims` anything; NaN for the others.
        expected: the sign that the treatment should have; 0: none, since the group is not part of it, or the metric says
            nothing of symmetry.
    """

    architecture: str
    plain: str
    treated: str
    treatment: str
    data: str
    group: str
    metric: Metric
    before: float
    after: float
    seeds: tuple[int, int]
    difference: Estimate
    expected: int
    holm: float = math.nan

    @property
    def claims(self) -> bool:
        """Whether something can be said of the treatment: that takes two seeds of both networks."""
        return min(self.seeds) > 1

    @property
    def verdict(self) -> str:
        """What the data say of it: one of `VERDICTS`, or `ALONE`."""
        if not self.claims:
            return ALONE
        if not self.holm < 1 - LEVEL:
            return VERDICTS[2] if self.expected else VERDICTS[4]
        if not self.expected:
            return VERDICTS[3]
        return VERDICTS[0] if self.difference.value * self.expected > 0 else VERDICTS[1]


def contrasts(board: "Board") -> list[Contrast]:
    """Each treated network against the plain one that differs in nothing else; empty where a board has no such pair.

    Of each group the metric that ranks and the symmetry share; the accuracy once, since no group decides it.
    """
    known = board.kinds
    plain: dict[str, str] = {}
    for model, kind in known.items():
        if kind.treatment == PLAIN:
            plain.setdefault(kind.kin, model)
    found = []
    for model, kind in sorted(known.items(), key=lambda item: (item[1].architecture, item[1].treatment, item[0])):
        if kind.treatment != PLAIN and kind.kin in plain:
            found += sorted(_against(board, plain[kind.kin], model, kind), key=lambda one: one.metric.name == ACCURACY)
    adjusted = holm([one.difference.p if one.claims else math.nan for one in found])
    return [replace(one, holm=float(p)) for one, p in zip(found, adjusted, strict=True)]


def _against(board: "Board", plain: str, model: str, kind: Kind) -> Iterable[Contrast]:
    told = set()
    for row in board.rows:
        other: Row = (plain, *row[1:])
        if row[0] != model or other not in board.rows:
            continue
        aligned = [metric.name for metric in METRICS.values() if metric.rank and board.seeds.sample(row, metric.name)][
            :1
        ]
        for name in (*aligned, *SHARES, ACCURACY):
            after, before = board.seeds.sample(row, name), board.seeds.sample(other, name)
            if after is None or before is None or (name == ACCURACY and row[1] in told):
                continue
            better = METRICS[name].higher_is_better
            group = row[2]
            if name == ACCURACY:
                told.add(row[1])
                group, sign = UNGROUPED, 0
            else:
                sign = (1 if better else -1) if any(covers(board, own, group) for own in kind.groups) else 0
            difference = contrast((1, after), (-1, before))
            yield Contrast(
                kind.architecture, plain, model, kind.treatment, row[1], group, METRICS[name], before.value, after.value,
                (before.seeds, after.seeds), difference, sign,
            )  # fmt: skip


def covers(board: Cells, told: str, asked: str) -> bool:
    """Whether training with one group tells of another: they are the same, or it has all elements of the other."""
    if told == asked:
        return True
    whole, part = (board.plan.option("group", name).group for name in (told, asked))
    finite = isinstance(whole, groups.FiniteGroup) and isinstance(part, groups.FiniteGroup)
    return finite and part.keys() <= whole.keys()


def table(found: Iterable[Contrast]) -> pd.DataFrame:
    """The contrasts as treatments.csv holds them: a row each (columns: `COLUMNS`), numbers to six digits."""
    rows = []
    for one in found:
        lo, hi = one.difference.ends
        numbers = [one.before, one.after, one.difference.value, lo, hi, one.difference.p, one.holm]
        kept = [float(f"{number:.6g}") for number in numbers]
        named = [one.architecture, one.plain, one.treated, one.treatment, one.data, one.group, one.metric.name]
        rows.append([*named, *kept, one.difference.paired, *one.seeds, one.expected, one.verdict])
    return pd.DataFrame(rows, columns=COLUMNS)


def told_together(found: Iterable[Contrast]) -> str:
    """What the contrasts say together, in a sentence."""
    asked = [one for one in found if one.expected]
    counts = {verdict: sum(one.verdict == verdict for one in asked) for verdict in (*VERDICTS[:3], ALONE)}
    if not asked:
        return "No treatment of these networks tells of a group that they were measured under."
    listed = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count or verdict != ALONE)
    return f"Of {len(asked)} contrasts in which the treatment should make the network more symmetric: {listed}."
