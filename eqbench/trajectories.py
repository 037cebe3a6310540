"""Networks over training: a number of theirs from epoch to epoch, and when half of its change was made (no torch)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

from eqbench.inference import Sample, contrast, holm, spread
from eqbench.lineage import place
from eqbench.metrics import METRICS, SHARES
from eqbench.pooling import Row, pool
from eqbench.profiles import PERMUTED
from eqbench.results import Measure, Result, Status
from eqbench.stats import LEVEL

if TYPE_CHECKING:
    from eqbench.leaderboard import Board

THIRDS = ("early", "middle", "late")  # of a network's depth

Curve = list[tuple[int, Measure]]  # (epoch, the number over seeds), from the first to the last

At = TypeVar("At")
Seed = TypeVar("Seed")
Number = TypeVar("Number")


def curve(board: "Board", row: Row, metric: str) -> Curve:
    """A metric of a row over training, its `steady` seeds pooled as on the board."""
    states, numbers = board.epochs.get(row[0], {}), board.seeds.measures[row]
    by = steady({state: numbers.get((metric, state), {}) for state in states})
    found = [
        (states[state], pool([*own.values()], board.seeds.around(*row[1:], (metric, state))))
        for state, own in by.items()
    ]
    return [(epoch, measure) for epoch, measure in found if measure.value is not None]


def steady(by: Mapping[At, Mapping[Seed, Number]]) -> dict[At, dict[Seed, Number]]:
    """The numbers of the seed with most states, at those, beside the seeds that have all of them.

    The mean of other seeds from state to state would jump where nothing happened.

    >>> steady({0: {"s0": 0.1, "s1": 0.3}, 1: {"s1": 0.4}, 2: {"s0": 0.3, "s1": 0.5}})
    {0: {'s1': 0.3}, 1: {'s1': 0.4}, 2: {'s1': 0.5}}
    """
    own: dict[Seed, list[At]] = {}
    for at, numbers in by.items():
        for seed in numbers:
            own.setdefault(seed, []).append(at)
    longest = max(own.values(), key=len, default=[])
    kept = [seed for seed, having in own.items() if set(longest) <= set(having)]
    return {at: {seed: by[at][seed] for seed in kept} for at in longest}


def thirds(board: "Board", metric: str = PERMUTED) -> dict[tuple[Row, str], Curve]:
    """(Row, third of the depth) -> the mean over its layers of a layered metric over training.

    Layers of one network share their images: the interval of a mean over layers is the mean of their intervals, the
    widest that it can be; `steady` seeds are pooled as on the board. Prefix tokens, which are no map, are left out.
    """
    found: dict[tuple[Row, str], dict[str, dict[str, Measure]]] = {}
    for row, cells in board.rows.items():
        for cell in cells:
            result = board.results.get(cell)
            if result is None or result.status is not Status.ok or cell.state not in board.epochs.get(row[0], {}):
                continue
            for third, mean in _means(result, metric):
                found.setdefault((row, third), {}).setdefault(cell.state, {})[cell.seed] = mean
    seeds: dict[tuple[str, ...], list[list[float]]] = {}
    for ((_, *where), third), by in found.items():
        for state, measures in by.items():
            known = [measure.value for measure in measures.values() if measure.value is not None]
            seeds.setdefault((*where, third, state), []).append(known)
    spreads = {key: spread(networks) for key, networks in seeds.items()}
    return {
        (row, third): [
            (epoch, pool([*own[state].values()], spreads[(*row[1:], third, state)]))
            for state, epoch in board.epochs[row[0]].items()
            if state in own
        ]
        for (row, third), own in ((key, steady(by)) for key, by in found.items())
    }


def _means(result: Result, metric: str) -> Iterable[tuple[str, Measure]]:
    """The mean of a metric over the layers of each third of a network, with the mean interval."""
    by: dict[str, list[tuple[float, float | None, float | None]]] = {}
    for layer in result.layers:
        measure = layer.metrics.get(metric)
        if measure is not None and measure.value is not None and ":" not in layer.name:
            by.setdefault(THIRDS[min(int(3 * layer.depth), 2)], []).append((measure.value, measure.lo, measure.hi))
    for third in THIRDS:
        if third in by:
            value, lo, hi = (_mean(own) for own in zip(*by[third], strict=True))
            yield third, Measure(value, lo, hi)


def _mean(numbers: Sequence[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return sum(known) / len(known) if len(known) == len(numbers) else None


def halfway(points: Sequence[tuple[float, float]]) -> float | None:
    """The epoch at which a curve first reached half of its whole change; None: it did not change.

    Between two saved epochs the value is interpolated along `place`, in which they are evenly spaced.

    Args:
        points: (epoch, value) in order, the first and the last state among them.

    >>> round(halfway([(0, 0.0), (1, 0.1), (3, 0.9), (7, 1.0)]), 6)  # half way from place 1 to place 2
    1.828427
    """
    (_, first), *_, (_, last) = points
    if first == last:
        return None
    shares = [(place(epoch), (value - first) / (last - first)) for epoch, value in points]
    for (x, low), (y, high) in pairwise(shares):
        if high >= 0.5:
            return float(2 ** (x + (y - x) * (0.5 - low) / (high - low)) - 1)
    return None


@dataclass(frozen=True)
class When:
    """When a network's share of asymmetric loss was half way from the untrained to the trained one.

    Attributes:
        epoch, lo, hi: geometric mean over seeds and its 95 % interval, of 1 + epoch; within training. last: its epochs.
        groups: those under which training changed the share (Holm over the board); seeds, images: how many.
    """

    model: str
    data: str
    metric: str
    epoch: float
    lo: float
    hi: float
    last: int
    groups: tuple[str, ...]
    seeds: int
    images: int

    @property
    def known(self) -> bool:
        """Whether the interval excludes any part of training."""
        return self.lo > 0 or self.hi < self.last


def when(board: "Board") -> tuple[list[When], list[str]]:
    """When each network's symmetry share was half way, the earliest first; and the networks of which nothing can be said.

    A seed's time is the mean over groups of log2(1 + epoch); how far seeds lie apart is moderated by the board's other
    networks (eqbench.inference). Networks with one seed, or whose share did not change under any group, have no time.
    """
    rows = [row for row in board.rows if row[0] in board.epochs]
    metrics = {row: next((name for name in SHARES if by_seed(board, row, name)), None) for row in rows}
    asked = [(row, name) for row, name in metrics.items() if name]
    tests = [board.seeds.change(row, name) for row, name in asked]
    adjusted = holm([math.nan if test is None else test.p for test in tests])
    times: dict[tuple[str, str, str], dict[str, dict[str, float]]] = {}  # network -> group -> seed -> place
    for (row, name), p in zip(asked, adjusted, strict=True):
        own = times.setdefault((row[0], row[1], name), {})
        if p < 1 - LEVEL:
            halves = {seed: halfway(points) for seed, points in by_seed(board, row, name).items()}
            if halves and all(half is not None for half in halves.values()):
                own[row[2]] = {seed: place(half) for seed, half in halves.items() if half is not None}
    means = {network: _per_seed(groups) for network, groups in times.items()}
    around = spread(means.values())
    found, silent = [], []
    for network, values in means.items():
        if len(values) < 2:
            silent.append(f"{network[0]} on {network[1]}")
            continue
        variance, df = around.moderated(values)
        mean, last = sum(values) / len(values), max(board.epochs[network[0]].values())
        low, high = contrast((1, Sample(mean, None, 0.0, 0.0, variance / len(values), df=df, seeds=len(values)))).ends
        at, lo, hi = (min(max(2**end - 1, 0.0), float(last)) for end in (mean, low, high))
        model, data, metric = network
        groups = tuple(times[network])
        images = board.seeds.over((model, data, groups[0]), metric, "final").n or 0
        found.append(When(model, data, metric, at, lo, hi, last, groups, len(values), images))
    return sorted(found, key=lambda one: (one.epoch, one.model)), silent


def by_seed(board: "Board", row: Row, metric: str) -> dict[str, list[tuple[float, float]]]:
    """Seed -> (epoch, value) over training; seeds with a value at every state that the row was asked for alone.

    A state that a seed lacks would move its half-way time, so such seeds have none.
    """
    states = board.epochs.get(row[0], {})
    probe = METRICS[metric].probe
    asked = {cell.state for cell in board.rows[row] if cell.probe == probe and cell.state in states}
    found: dict[str, list[tuple[float, float]]] = {}
    for state, epoch in states.items():
        for seed, measure in board.seeds.measures[row].get((metric, state), {}).items():
            if measure.value is not None:
                found.setdefault(seed, []).append((epoch, measure.value))
    whole = {"init", "final"} <= asked and len(asked) > 2
    return {seed: points for seed, points in found.items() if whole and len(points) == len(asked)}


def _per_seed(groups: dict[str, dict[str, float]]) -> list[float]:
    """The mean over groups of each seed that has them all."""
    seeds = set.intersection(*(set(own) for own in groups.values())) if groups else set()
    return [sum(own[seed] for own in groups.values()) / len(groups) for seed in sorted(seeds)]
