"""Cells of one network combined: seeds into one measure a state, trained against untrained (no torch)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from eqbench.cells import Cells
from eqbench.config import Cell
from eqbench.inference import Estimate, Sample, Spread, contrast, sample, spread
from eqbench.metrics import METRICS
from eqbench.results import Measure, Status

STATES = ("final", "init")  # of the wide table; those between them are the trajectory's
Row = tuple[str, str, str]  # model, data, group
Number = tuple[str, str]  # metric, state


class Seeds:
    """The numbers of a board's rows, one a seed, beside how far the seeds of all its models lie apart.

    Attributes:
        measures: row -> number -> seed -> its measure. Those of other images than most have, of the same data set and as
            many, are without replicates: they cannot be paired.
    """

    def __init__(self, cells: Cells, rows: Mapping[Row, Sequence[Cell]]) -> None:
        """Take what is finished of `rows`, each with its cells."""
        self.measures: dict[Row, dict[Number, dict[str, Measure]]] = {row: {} for row in rows}
        images: Counter[tuple[str, int | None, str]] = Counter()
        kept: list[tuple[dict[str, Measure], str, tuple[str, int | None, str]]] = []
        for row, own in rows.items():
            for cell in own:
                result = cells.results.get(cell)
                if result is None or result.status is not Status.ok:
                    continue
                for name, measure in result.metrics.items():
                    if name not in METRICS or METRICS[name].probe != cell.probe:
                        continue
                    found = self.measures[row].setdefault((name, cell.state), {})
                    if measure.replicates:
                        kept.append((found, cell.seed, (row[1], measure.n, str(result.provenance.get("data")))))
                        images[kept[-1][2]] += 1
                    found[cell.seed] = measure
        usual = {key[:2]: key for key, _ in reversed(images.most_common())}
        for found, seed, key in kept:
            if usual[key[:2]] != key:
                found[seed] = replace(found[seed], units=None, replicates=None)
        self._values: dict[tuple[str, str, Number], list[list[float]]] = {}
        for (_, data, group), numbers in self.measures.items():
            for number, measures in numbers.items():
                known = [measure.value for measure in measures.values() if measure.value is not None]
                if len(known) == len(measures) > 1:
                    self._values.setdefault((data, group, number), []).append(known)
        self._spreads: dict[tuple[str, str, Number], Spread] = {}

    def around(self, data: str, group: str, number: Number) -> Spread | None:
        """How far the seeds of one model lie apart in a number, by all models that have several; None: none has."""
        key = data, group, number
        if key in self._values and key not in self._spreads:
            self._spreads[key] = spread(self._values[key])
        return self._spreads.get(key)

    def pooled(self, row: Row) -> dict[Number, Measure]:
        """The row's numbers over its seeds, trained and untrained."""
        return {number: self.over(row, *number) for number in self.measures[row] if number[1] in STATES}

    def over(self, row: Row, metric: str, state: str) -> Measure:
        """One number of a row over its seeds."""
        return pool([*self.measures[row].get((metric, state), {}).values()], self.around(*row[1:], (metric, state)))

    def sample(self, row: Row, metric: str, state: str = "final") -> Sample | None:
        """One number of a row, to be compared with others; None where it has no value or no interval."""
        number = metric, state
        return sample([*self.measures[row].get(number, {}).values()], self.around(*row[1:], number))

    def change(self, row: Row, metric: str) -> Estimate | None:
        """What training changed: trained minus untrained, images paired where they can be."""
        final, init = self.sample(row, metric), self.sample(row, metric, "init")
        return None if final is None or init is None else contrast((1, final), (-1, init))


def pool(measures: Sequence[Measure], around: Spread | None = None) -> Measure:
    """One measure of several seeds: mean value, floor and null, and the interval of eqbench.inference over images and seeds.

    A seed whose value is not finite is not averaged away: the pooled value is then None. A seed's reason is kept.

    Args:
        measures: one a seed. around: how far the seeds of the board's models lie apart; None: these alone say it.

    >>> found = pool([Measure(0.2, 0.1, 0.3), Measure(0.4, 0.3, 0.5)], Spread(0.02, 8.0, 9.0))
    >>> round(found.value, 3), round(found.lo, 3), round(found.hi, 3)
    (0.3, 0.06, 0.54)
    """
    if len(measures) == 1:
        return measures[0]

    def mean(key: str) -> float | None:
        numbers = [getattr(measure, key) for measure in measures]
        return sum(numbers) / len(numbers) if numbers and None not in numbers else None

    known = sample(measures, around)
    lo, hi = contrast((1, known)).ends if known else (None, None)
    counts = [m.n for m in measures if m.n is not None]
    reason = next((m.reason for m in measures if m.reason), None if measures else "not measured")
    return Measure(mean("value"), lo, hi, min(counts, default=None), mean("floor"), mean("null"), reason)


def emergence(final: Measure, init: Measure) -> Measure:
    """What training added: final - init, with the widest interval that the two leave open.

    Where replicates are kept, `inference.contrast` is sharper.

    >>> emergence(Measure(0.5, 0.4, 0.7), Measure(1.2, 0.9, 1.6))
    Measure(value=-0.7, lo=-1.2000000000000002, hi=-0.20000000000000007, n=None, floor=None, null=None, reason=None)
    """
    return Measure(_less(final.value, init.value), _less(final.lo, init.hi), _less(final.hi, init.lo))


def emergence_index(final: Measure, init: Measure) -> Measure:
    """The share of an error that training removed: A = 1 - final / init, with the widest interval that the two leave open.

    It is 0 where training changed nothing, 1 where nothing is left, and negative where training added to the error;
    undefined where the untrained error's interval reaches 0.

    >>> found = emergence_index(Measure(0.25, 0.2, 0.3), Measure(0.5, 0.4, 0.8))
    >>> found.value, round(found.lo, 9), found.hi
    (0.5, 0.25, 0.75)
    """
    if final.value is None or init.value is None:
        return Measure(None, reason=final.reason or init.reason)
    if min(init.value, init.value if init.lo is None else init.lo) <= 0:
        return Measure(None, reason="the untrained error is not distinguishable from 0")
    return Measure(
        1 - final.value / init.value,
        _gain(final.hi, init.lo),
        _gain(None if final.lo is None else max(final.lo, 0.0), init.hi),  # there is no error below 0
        null=0.0,
    )


def _gain(final: float | None, init: float | None) -> float | None:
    return None if final is None or init is None else 1 - final / init


def _less(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
