"""What an ensemble has over its members: each of its numbers minus the mean of theirs, on the same images (no torch).

Mean logits are more symmetric than those they are the mean of, where members break the symmetry each in its own way
(Gerken & Kessel 2024, ICML). Members are what they are: of one ensemble the interval is over images alone; several disjoint
ensembles of a board have the spread between them as well.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from eqbench.config import Cell
from eqbench.inference import Estimate, contrast, holm, sample
from eqbench.metrics import ACCURACY, METRICS, SHARES, Metric
from eqbench.results import Measure, Result, Status
from eqbench.schema import UNGROUPED, Source
from eqbench.stats import LEVEL, pack, unpack

if TYPE_CHECKING:
    from eqbench.leaderboard import Board

COMPARED = [name for name, metric in METRICS.items() if metric.rank]
COMPARED += [*SHARES, "consistency_same", ACCURACY]
COLUMNS = ["model", "of", "members", "ensembles", "data", "group", "metric", "value", "value_members"]
COLUMNS += ["difference", "lo", "hi", "p", "holm", "paired"]


@dataclass(frozen=True)
class Gain:
    """One number of a model that is an ensemble, minus the mean of its members'.

    Attributes:
        model, of: the ensemble's, and its members'. members: of each of the `ensembles`.
        whole: its value; mean: of its members; both over the ensembles.
        holm: p that there is no difference, two-sided, adjusted for all gains of the board.
    """

    model: str
    of: str
    members: int
    ensembles: int
    data: str
    group: str
    metric: Metric
    whole: float
    mean: float
    difference: Estimate
    holm: float = math.nan

    @property
    def verdict(self) -> str:
        """What the data say of it."""
        if not self.holm < 1 - LEVEL:
            return "no evidence"
        return "better" if (self.difference.value > 0) == self.metric.higher_is_better else "worse"


def gains(board: "Board") -> list[Gain]:
    """Every ensemble against its members, in the order of the board's rows; empty where it has no ensemble with all of them.

    Of the trained networks; the accuracy once, since no group decides it.
    """
    found = []
    accurate: set[tuple[str, str]] = set()
    for (model, data, group), cells in board.rows.items():
        conf = board.plan.option("model", model)
        if conf.source is not Source.ensemble:
            continue
        for name in COMPARED:
            own = list(_differences(board, [cell for cell in cells if cell.probe == METRICS[name].probe], data, name))
            told = sample([less for _, _, less in own])
            if told is None or (name == ACCURACY and (model, data) in accurate):
                continue
            accurate |= {(model, data)} if name == ACCURACY else set()
            where = UNGROUPED if name == ACCURACY else group
            whole, mean = (float(np.mean([pair[i] for pair in own])) for i in (0, 1))
            sizes = (conf.members, len(own))
            found.append(Gain(model, conf.of, *sizes, data, where, METRICS[name], whole, mean, contrast((1, told))))
    adjusted = holm([one.difference.p for one in found])
    return [replace(one, holm=float(p)) for one, p in zip(found, adjusted, strict=True)]


def _differences(board: "Board", cells: list[Cell], data: str, name: str) -> Iterator[tuple[float, float, Measure]]:
    """For each ensemble all of whose members are measured: its value, theirs on average, and the difference."""
    for cell in cells:
        members = [replace(cell, model=of, seed=seed) for of, seed in board.plan.members(cell.model, cell.seed)]
        alike = all(board.plan.cells.get(member, ("", None))[0] == data for member in members)
        own = [_measure(board, one, name) for one in (cell, *members)]
        known = [found for found in own if found is not None]
        if cell.state == "final" and alike and len(known) == len(own):
            less = subtract(known[0], known[1:])
            if less.value is not None:
                yield known[0][1].value or 0.0, (known[0][1].value or 0.0) - less.value, less


def _measure(board: "Board", cell: Cell, name: str) -> tuple[Result, Measure] | None:
    result = board.results.get(cell)
    found = result.metrics.get(name) if result and result.status is Status.ok else None
    return (result, found) if result and found and found.value is not None else None


def subtract(whole: tuple[Result, Measure], members: list[tuple[Result, Measure]]) -> Measure:
    """An ensemble's measure minus the mean of its members'; each with the result that it is from.

    Replicates are subtracted one by one where all are of the same resamples of the same images; else the interval is the
    widest that the measures leave open.

    >>> one = Result({}), Measure(0.2, 0.1, 0.3)
    >>> less = subtract(one, [(Result({}), Measure(0.5, 0.4, 0.6)), (Result({}), Measure(0.7, 0.6, 0.8))])
    >>> round(less.value, 9), round(less.lo, 9), round(less.hi, 9)
    (-0.4, -0.6, -0.2)
    """
    (result, own), others = whole, [measure for _, measure in members]
    value = (own.value or 0.0) - float(np.mean([other.value for other in others]))
    images = {one.provenance.get("data") for one in (result, *(one for one, _ in members))}
    measures = [own, *others]
    texts = [measure.replicates for measure in measures if measure.replicates]
    lo = hi = None
    if all(measure.lo is not None and measure.hi is not None for measure in measures):
        lo = (own.lo or 0.0) - float(np.mean([other.hi for other in others]))
        hi = (own.hi or 0.0) - float(np.mean([other.lo for other in others]))
    if len(texts) < len(measures) or len({measure.units for measure in measures}) > 1 or len(images) > 1:
        return Measure(value, lo, hi, own.n)
    drawn = unpack(texts[0]) - np.mean([unpack(text) for text in texts[1:]], 0)
    return Measure(value, lo, hi, own.n, units=own.units, replicates=pack(drawn))


def table(found: list[Gain]) -> pd.DataFrame:
    """The gains as ensembles.csv holds them: a row each (columns: `COLUMNS`), numbers to six digits."""
    rows = []
    for one in found:
        numbers = [one.whole, one.mean, one.difference.value, *one.difference.ends, one.difference.p, one.holm]
        named = [one.model, one.of, one.members, one.ensembles, one.data, one.group, one.metric.name]
        rows.append([*named, *(float(f"{number:.6g}") for number in numbers), one.difference.paired])
    return pd.DataFrame(rows, columns=COLUMNS)
