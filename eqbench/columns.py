"""The page's tables as text: one a ranking metric, with the columns that its rows have numbers for (no torch)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from eqbench.leaderboard import KEYS, STATISTICS, Board
from eqbench.metrics import METRICS, Metric
from eqbench.schema import UNGROUPED
from eqbench.stats import LEVEL

ARROWS = {True: "↑", False: "↓", None: ""}
SENSES = {True: "higher is better", False: "lower is better", None: "descriptor"}
NUMBERS = 36_000  # cells of a page: further columns than the headline's are left to the CSV where a board has more
LEAN = (
    12_000  # cells up to which floor, null and untrained value stand in the page's HTML; beyond, its script adds them
)
THEMES = {
    "equivariance": ("orbit", "lie", "sweep", "consistency"),
    "robustness": ("robustness",),
    "mechanism": ("circuits", "ablation"),
    "landscape": ("spectrum", "symmetries", "group_landscape", "sharpness", "slices", "dynamics"),
}  # of the probes' columns
FACTS = {
    "parameters": ("cost", "params", "Parameters", "Number of weights."),
    "seconds": (
        "cost",
        "s",
        "Seconds",
        "Time of the row's cells; groups share forwards, so the first one measured pays.",
    ),
    "architecture": ("provenance", "timm", "Architecture", "The name that timm knows the network by."),
    "image_size": ("provenance", "px", "Input size", "Height and width of the images that the network takes."),
    "licence": ("provenance", "licence", "Licence", "Of the weights."),
    "weights": ("provenance", "sha256", "Weights", "The first digits of the sha256 of the weights of seed 0."),
    "device": ("provenance", "device", "Device", "Where the row's cells were measured."),
    "git": ("provenance", "git", "Revision", "Of eqbench, that measured the row."),
}  # column of the leaderboard -> theme, symbol, title, tip
HOLM = "p, Holm"  # what stands below an emergence: the chance of so much where training changed nothing, of all the board's
ALIGNED = "lattice_error_aligned"  # whose input size is named beneath it


@dataclass(frozen=True)
class Column:
    """A column of numbers, or of facts if it is no metric's.

    Attributes:
        key: column of the leaderboard that holds what the cells show large.
        theme: the group of columns that it is shown and hidden with.
        legend: what stands below the value and its interval, in order.
        metric: whether it has a value a state: the three are `key`, `key_init` and `key_emergence`.
        bounded: whether it has an interval.
    """

    key: str
    theme: str
    symbol: str
    title: str
    sense: str
    arrow: str
    shown: bool
    tip: str
    unit: str = ""
    legend: tuple[str, ...] = ()
    metric: bool = False
    bounded: bool = True

    @property
    def parts(self) -> list[str]:
        """The columns of the leaderboard that it shows some of."""
        if self.metric:
            return [self.key + part for part in STATISTICS if part != "_init_null"]
        return [self.key + part for part in ("", "_lo", "_hi", "_p", "_holm")] if self.bounded else [self.key]


@dataclass(frozen=True)
class Table:
    """The rows that one metric ranks, the rows that none does, or those of the probes that have no group."""

    ranking: Metric | None
    groups: list[str]
    columns: list[Column]
    rows: list[dict[str, Any]]  # the leaderboard's, with `cells`: the lines of text of a column
    lean: bool  # whether the cells lack the line that the legend names


def tables(board: Board) -> list[Table]:
    """The board's rows as tables, in the order of the metrics that rank them; those without a group come last."""
    rows, alone = board.table, board.table["group"] == UNGROUPED
    parts: list[tuple[Metric | None, pd.DataFrame]]
    parts = [(metric, rows[rows["ranked_by"] == name]) for name, metric in METRICS.items() if metric.rank]
    parts += [(None, rows[rows["ranked_by"].isna() & ~alone]), (None, rows[alone])]
    found = [(ranking, frame) for ranking, frame in parts if len(frame)]
    room = NUMBERS // max(1, len(board.table))
    columns = [_chosen(list(_columns(ranking, frame)), room) for ranking, frame in found]
    lean = sum(len(own) * len(frame) for own, (_, frame) in zip(columns, found, strict=True)) > LEAN
    return [_table(*part, own, lean) for part, own in zip(found, columns, strict=True)]


def _chosen(columns: list[Column], room: int) -> list[Column]:
    """Those that there is room for, in their order: the cost first, then shown columns before hidden ones."""
    order = sorted(range(len(columns)), key=lambda i: (columns[i].theme != "cost", not columns[i].shown))
    kept = set(order[: max(room, 4)])
    return [column for i, column in enumerate(columns) if i in kept]


def _table(ranking: Metric | None, frame: pd.DataFrame, columns: list[Column], lean: bool) -> Table:
    plain = frame.astype(object).where(frame.notna(), None)
    rows: list[dict[str, Any]] = [dict(zip(plain.columns, row, strict=True)) for row in plain.itertuples(index=False)]
    cells = [{"cells": ["\n".join(_lines(row, column, lean)) for column in columns]} for row in rows]
    groups = list(dict.fromkeys(frame["group"]))
    return Table(ranking, groups, columns, [row | own for row, own in zip(rows, cells, strict=True)], lean)


def _columns(ranking: Metric | None, frame: pd.DataFrame) -> Iterator[Column]:
    """The metrics that some row has: the ranking one, the headline ones, the others by probe; then cost and provenance."""
    has = frame[[f"{name}{end}" for name in METRICS for end in ("", "_init")]].notna().any()
    found = [metric for metric in METRICS.values() if has[metric.name] or has[f"{metric.name}_init"]]
    themes = {probe: theme for theme, probes in THEMES.items() for probe in probes}
    for metric in sorted(found, key=lambda metric: (metric is not ranking, not metric.headline)):
        better, theme = metric.higher_is_better, themes[metric.probe]
        beside = {"floor": "_floor", "null": "_null", "untrained": "_init"}
        legend = [word for word, end in beside.items() if frame[metric.name + end].notna().any()]
        tip = f"{metric.definition} {metric.formula}"
        yield Column(metric.name, theme, metric.symbol, metric.title, SENSES[better], ARROWS[better],
                     metric.headline or metric is ranking, tip, metric.unit, tuple(legend), metric=True)  # fmt: skip
        if metric is ranking:
            tip = f"{metric.symbol} trained minus {metric.symbol} untrained: what training changed."
            sense = f"{'positive' if better else 'negative'} is better"
            tested = (HOLM,) if frame[f"{metric.name}_emergence_holm"].notna().any() else ()
            yield Column(f"{metric.name}_emergence", theme, f"Δ{metric.symbol}", "Emergence", sense,
                         ARROWS[better], True, tip, legend=tested)  # fmt: skip
    for key, (theme, symbol, title, tip) in FACTS.items():
        if frame[key].notna().any():
            yield Column(key, theme, symbol, title, SENSES[None], "", theme == "cost", tip, bounded=False)


def _lines(row: dict[str, Any], column: Column, lean: bool) -> Iterator[str]:
    """A number, and the lines below it; an empty cell is a dash alone. `lean`: without the line that the legend names."""
    value = row[column.key]
    if isinstance(value, str):
        yield value
        return
    yield number(value)
    words = column.legend if column.metric else ()
    beside = [row[f"{column.key}_{'init' if word == 'untrained' else word}"] for word in words]
    if value is None and all(other is None for other in beside):
        return
    if column.bounded:
        low, high = row[f"{column.key}_lo"], row[f"{column.key}_hi"]
        yield f"[{number(low)}, {number(high)}]" if low is not None and high is not None else "no interval"
    if beside and not lean:
        yield " · ".join(map(number, beside))
    if HOLM in column.legend:
        yield _claim(row[f"{column.key}_holm"])
    if column.key == ALIGNED and row["aligned_size"] not in (None, row["image_size"]):
        yield f"at {row['aligned_size']:.0f} px"


def _claim(p: float | None) -> str:
    """What a p-value says of an emergence."""
    told = "no p" if p is None else "p < 0.001" if p < 5e-4 else f"p {p:.3f}"
    return told if p is not None and p < 1 - LEVEL else f"{told}: no evidence"


def by_theme(found: Sequence[Table]) -> dict[str, list[Column]]:
    """The columns of all tables, each once, by theme: what the reader may show and hide."""
    columns = {column.key: column for table in found for column in table.columns}
    order = {name: i for i, name in enumerate([*METRICS, *FACTS])}
    themes: dict[str, list[Column]] = {}
    for column in sorted(columns.values(), key=lambda c: order[c.key.removesuffix("_emergence")]):
        themes.setdefault(column.theme, []).append(column)
    return themes


def embedded(board: Board, found: Sequence[Table]) -> dict[str, list[Any]]:
    """The leaderboard's columns that the page shows, or counts by, with its rows in the order of the page."""
    parts = {part for table in found for column in table.columns for part in column.parts}
    kept = [name for name in board.table if name in KEYS[1:] or name in parts | {"aligned_size", "image_size"}]
    rows = [row for table in found for row in table.rows]
    columns = {name: [row[name] for row in rows] for name in kept}
    return {name: values for name, values in columns.items() if name in KEYS or any(v is not None for v in values)}


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
