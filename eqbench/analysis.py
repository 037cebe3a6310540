"""What symmetry goes with on a board: rank correlations with accuracy, robustness, data efficiency and sharpness (no torch).

Two questions are asked, for every finite group and outcome in one order. Between networks: of the trained ones (a point each,
the mean over its seeds), do those with a smaller symmetry loss share have another outcome? Over training: where the share
is smaller than that network's and that epoch's mean, is the outcome another one? Networks are what is resampled, those made of
the same weights or by one recipe together. Untrained states are left out: who knows nothing loses nothing to missing symmetry.

The claim is the correlation at equal accuracy (partial, by ranks), for accuracy itself the plain one. There is evidence where its
interval leaves out 0 and its p-value, adjusted for all claims of the board (Holm), is below 0.05.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import pandas as pd

from eqbench.columns import number
from eqbench.inference import holm
from eqbench.metrics import ACCURACY, METRICS
from eqbench.panelpoints import BETWEEN, LESS, Point, Question, points
from eqbench.rankcorrelation import Correlation, correlate
from eqbench.stats import LEVEL

if TYPE_CHECKING:
    from eqbench.leaderboard import Board

FEWEST = 6  # independent networks that a claim about networks takes
TOLD = 6  # relations that the page puts into words
EVIDENCE, NONE = "evidence", "no evidence"


@dataclass(frozen=True)
class Relation:
    """One rank correlation of the board and what it says.

    Attributes:
        data, scope, group, symmetry, outcome: see `panelpoints.Question`.
        n: points. networks: independent ones. states: of each, at which all of a panel were measured.
        rho, partial: the correlation, and that at equal accuracy, with their intervals; NaN: not defined.
        p: of the claim. holm: adjusted for all claims of the board.
        verdict: `evidence` or `no evidence`. reason: why there is no number.
    """

    data: str
    scope: str
    group: str
    symmetry: str
    outcome: str
    n: int
    networks: int
    states: int
    rho: float = math.nan
    rho_lo: float = math.nan
    rho_hi: float = math.nan
    partial: float = math.nan
    partial_lo: float = math.nan
    partial_hi: float = math.nan
    p: float = math.nan
    holm: float = math.nan
    verdict: str = NONE
    reason: str = ""

    @property
    def adjusted(self) -> bool:
        """Whether the claim is the correlation at equal accuracy."""
        return not math.isnan(self.partial)

    @property
    def claim(self) -> tuple[float, float, float]:
        """The correlation that the verdict is about, and its interval."""
        own = (self.partial, self.partial_lo, self.partial_hi)
        return own if self.adjusted else (self.rho, self.rho_lo, self.rho_hi)

    @property
    def title(self) -> str:
        """The outcome in words."""
        return named(self.outcome)

    @property
    def sentence(self) -> str:
        """What a relation with evidence says, without a cause."""
        value, lo, hi = self.claim
        share, way = METRICS[self.symmetry].title, "lower" if value > 0 else "higher"
        if self.scope == BETWEEN:
            text = f"Networks on {self.data} with a smaller {share} under {self.group} have a {way} {self.title}"
        else:
            text = f"In training on {self.data}, where the {share} under {self.group} is smaller than that network's and that epoch's mean, so is the {self.title} {way}"
        held = " at equal accuracy" if self.adjusted else ""
        p = f"= {number(self.holm)}" if self.holm >= 0.001 else "< 0.001"
        return f"{text}{held}: rank correlation {number(value)} [{number(lo)}, {number(hi)}], {self.networks} networks, adjusted p {p}."


def named(outcome: str) -> str:
    """An outcome in words.

    >>> named("accuracy_of_10")
    'Top-1 accuracy when trained on 10 % of the images'
    """
    if outcome in METRICS:
        return METRICS[outcome].title
    return f"{METRICS[ACCURACY].title} when trained on {outcome.removeprefix(LESS)} % of the images"


@dataclass(frozen=True)
class Analysis:
    """The board's relations for the page."""

    relations: list[Relation]

    @property
    def supported(self) -> list[Relation]:
        return [one for one in self.relations if one.verdict == EVIDENCE]

    @property
    def told(self) -> list[Relation]:
        return self.supported[:TOLD]

    @property
    def judged(self) -> int:
        """How many of the relations have a p-value."""
        return sum(not math.isnan(one.p) for one in self.relations)

    @property
    def most(self) -> int:
        """The largest number of independent networks behind a relation."""
        return max((one.networks for one in self.relations), default=0)

    @property
    def reasons(self) -> list[str]:
        """Why there are no numbers, each reason once."""
        return list(dict.fromkeys(one.reason for one in self.relations if one.reason))


def analyse(board: "Board") -> Analysis:
    """Every correlation that the board has points for, judged together."""
    return Analysis(judged([relate(asked, own) for asked, own in points(board).items()]))


def relate(asked: Question, own: Sequence[Point], count: int = 2000) -> Relation:
    """One question answered from its points, before it is judged beside the others.

    Args:
        count: bootstrap resamples.
    """
    networks = len({point.source for point in own})
    found = Relation(*asked, len(own), networks, len({point.state for point in own}))
    if networks < FEWEST:
        return replace(found, reason=f"{networks} independent networks: {FEWEST} are the least")
    share, outcome, accuracy = ([getattr(point, key) for point in own] for key in ("share", "outcome", "accuracy"))
    for title, values in ((METRICS[asked.symmetry].title, share), (found.title, outcome)):
        if len(set(values)) == 1:
            return replace(found, reason=f"{title} is {number(values[0])} of all")
    panel = None if asked.scope == BETWEEN else ([p.model for p in own], [p.state for p in own])

    def correlation(fixed: Sequence[float] | None) -> Correlation:
        return correlate(share, outcome, fixed, clusters=[p.source for p in own], panel=panel, count=count)

    plain = correlation(None)
    if math.isnan(plain.value):
        return replace(found, reason="less the means of networks and epochs nothing is left to vary")
    found = replace(found, rho=plain.value, rho_lo=plain.lo, rho_hi=plain.hi, p=plain.p)
    if asked.outcome == ACCURACY or any(map(math.isnan, accuracy)) or len(set(accuracy)) == 1:
        return found
    held = correlation(accuracy)
    found = replace(found, partial=held.value, partial_lo=held.lo, partial_hi=held.hi, p=held.p)
    return found if found.adjusted else replace(found, reason="at equal accuracy nothing is left to vary")


def judged(found: Sequence[Relation]) -> list[Relation]:
    """The same with p-values adjusted for how many they are, and verdicts."""
    told = []
    for one, p in zip(found, holm([one.p for one in found]), strict=True):
        _, lo, hi = one.claim
        sure = p < 1 - LEVEL and (lo > 0 or hi < 0)
        told.append(replace(one, holm=float(p), verdict=EVIDENCE if sure else NONE))
    return told


def table(suite: str, found: Analysis) -> pd.DataFrame:
    """A row a relation; columns: `suite` and those of `Relation`."""
    names = [field.name for field in fields(Relation)]
    frame = pd.DataFrame([vars(one) for one in found.relations], columns=names)
    frame.insert(0, "suite", suite)
    return frame
