"""The page's tables as text: one a ranking metric, with the columns that its rows have numbers for (no torch)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from eqbench.leaderboard import Board
from eqbench.metrics import METRICS, Metric
from eqbench.schema import UNGROUPED

ARROWS = {True: "↑", False: "↓", None: ""}
SENSES = {True: "higher is better", False: "lower is better", None: "descriptor"}
NUMBERS = 40_000  # numbers of a page: further columns than the headline's are left to the CSV where a board has more
ALIGNED = "lattice_error_aligned"  # whose input size is named beneath it


@dataclass(frozen=True)
class Column:
    """A column of numbers. `legend` names what stands below the value and, if it is bounded, its interval, in order."""

    key: str
    probe: str
    symbol: str
    title: str
    sense: str
    arrow: str
    shown: bool
    tip: str
    unit: str = ""
    legend: tuple[str, ...] = ()
    bounded: bool = True


@dataclass(frozen=True)
class Table:
    """The rows that one metric ranks, the rows that none does, or those of the probes that have no group."""

    ranking: Metric | None
    groups: list[str]
    columns: list[Column]
    rows: list[dict[str, Any]]  # the leaderboard's, with `cells`: (value, what stands below it) a column


def tables(board: Board) -> list[Table]:
    """The board's rows as tables, in the order of the metrics that rank them; those without a group come last."""
    rows, alone = board.table, board.table["group"] == UNGROUPED
    parts: list[tuple[Metric | None, pd.DataFrame]]
    parts = [(metric, rows[rows["ranked_by"] == name]) for name, metric in METRICS.items() if metric.rank]
    parts += [(None, rows[rows["ranked_by"].isna() & ~alone]), (None, rows[alone])]
    found = [(ranking, frame) for ranking, frame in parts if len(frame)]
    room = NUMBERS // max(1, len(board.table))
    return [_table(ranking, frame, room) for ranking, frame in found]


def _table(ranking: Metric | None, frame: pd.DataFrame, room: int) -> Table:
    columns = list(_columns(ranking, frame))
    columns = [column for i, column in enumerate(columns) if column.shown or i < room]
    plain = frame.astype(object).where(frame.notna(), None)
    rows: list[dict[str, Any]] = [dict(zip(plain.columns, row, strict=True)) for row in plain.itertuples(index=False)]
    groups = list(dict.fromkeys(frame["group"]))
    return Table(
        ranking, groups, columns, [row | {"cells": [_cell(row, column) for column in columns]} for row in rows]
    )


def _columns(ranking: Metric | None, frame: pd.DataFrame) -> Iterator[Column]:
    """The metrics that some row has: the ranking one, the headline ones, the others by probe; then what they cost."""
    has = frame[[f"{name}{end}" for name in METRICS for end in ("", "_init")]].notna().any()
    found = [metric for metric in METRICS.values() if has[metric.name] or has[f"{metric.name}_init"]]
    for metric in sorted(found, key=lambda metric: (metric is not ranking, not metric.headline)):
        better = metric.higher_is_better
        beside = {"floor": "_floor", "null": "_null", "untrained": "_init"}
        legend = [word for word, end in beside.items() if frame[metric.name + end].notna().any()]
        tip = f"{metric.definition} {metric.formula}"
        yield Column(metric.name, metric.probe, metric.symbol, metric.title, SENSES[better], ARROWS[better],
                     metric.headline or metric is ranking, tip, metric.unit, tuple(legend))  # fmt: skip
        if metric is ranking:
            tip = f"{metric.symbol} trained minus {metric.symbol} untrained: what training changed."
            sense = f"{'positive' if better else 'negative'} is better"
            yield Column(f"{metric.name}_emergence", metric.probe, f"Δ{metric.symbol}", "Emergence", sense,
                         ARROWS[better], True, tip)  # fmt: skip
    plain: Any = {"probe": "cost", "sense": SENSES[None], "arrow": "", "shown": False, "bounded": False}
    yield Column("parameters", symbol="params", title="Parameters", tip="Number of weights.", **plain)
    tip = "Time of the row's cells; groups share forwards, so the first one measured pays."
    yield Column("seconds", symbol="s", title="Seconds", tip=tip, **plain)


def _cell(row: dict[str, Any], column: Column) -> tuple[str, list[str]]:
    """A number, and the lines below it; an empty cell is a dash alone."""
    below = []
    if column.bounded:
        low, high = row[f"{column.key}_lo"], row[f"{column.key}_hi"]
        below.append(f"[{number(low)}, {number(high)}]" if low is not None and high is not None else "no interval")
    ends = {"untrained": "init"}
    beside = [row[f"{column.key}_{ends.get(word, word)}"] for word in column.legend]
    if row[column.key] is None and all(value is None for value in beside):
        return "—", []
    if beside:
        below.append(" · ".join(map(number, beside)))
    if column.key == ALIGNED and row["aligned_size"] not in (None, row["image_size"]):
        below.append(f"at {row['aligned_size']:.0f} px")
    return number(row[column.key]), below


def by_probe(found: Sequence[Table]) -> dict[str, list[Column]]:
    """The columns of all tables, each once, by probe: what the reader may show and hide."""
    columns = {column.key: column for table in found for column in table.columns}
    order = {name: i for i, name in enumerate(METRICS)}
    probes: dict[str, list[Column]] = {}
    for column in sorted(columns.values(), key=lambda c: order.get(c.key.removesuffix("_emergence"), len(order))):
        probes.setdefault(column.probe, []).append(column)
    return probes


def number(value: float | None) -> str:
    """A number for the eye: three digits, a true minus, and a dash for none.

    >>> [number(x) for x in (0.12345, -1.5, 1234.5, 2e-7, 0.0, None)]
    ['0.123', '−1.50', '1,234', '2e−7', '0', '—']
    """
    if value is None or math.isnan(value):
        return "—"
    size = abs(value)
    if size == 0 or (size >= 1 and float(value).is_integer() and size < 1000):
        text = f"{value:.0f}"
    elif size < 5e-4:
        text = f"{value:.0e}".replace("e-0", "e-")
    else:
        text = f"{value:,.{3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0}f}"
    return text.replace("-", "−")
