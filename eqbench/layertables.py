"""The layers of every network under every group: a small curve over depth, and the numbers as a table (no torch)."""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from eqbench.columns import number
from eqbench.leaderboard import Board
from eqbench.metrics import METRICS, Metric
from eqbench.minis import POINTS, Band, Line, chart, thinned
from eqbench.profiles import INDEX, PERMUTED, maps

NUMBERS = 30_000  # of a page's tables: a board with more leaves them to results.csv
BOUNDED = 3_000  # up to which each has its interval
CURVE, POINT = 600, 45  # characters of a curve, about, and of a layer in it

Place = tuple[str, str, str]  # model, data, group
Point = tuple[float, dict[str, float]]  # depth; trained and untrained value with their intervals


@dataclass(frozen=True)
class LayerTable:
    """The layers that one probe measured, in order of execution."""

    probe: str
    metrics: list[Metric]
    rows: list[dict[str, Any]]  # name, depth, shape; `cells`: lines of text a metric; `refused`: why, or None


@dataclass(frozen=True)
class Profile:
    """The layers of one row of the board, and what its heading says of them; no tables on a board of too many numbers."""

    group: str
    measured: int
    layers: int
    curve: Markup
    heading: str
    tables: list[LayerTable]


Curves = dict[Place, tuple[Metric | None, list[Point]]]


def sizes(found: Curves) -> tuple[str | None, int, int]:
    """The first group, and about how many characters the curves of that group take, and those of all."""
    each = {key: CURVE + POINT * min(len(points), POINTS) for key, (_, points) in found.items()}
    first = next((group for _, _, group in found), None)
    return first, sum(size for (*_, group), size in each.items() if group == first), sum(each.values())


def profiles(board: Board, found: Curves, groups: Collection[str]) -> dict[tuple[str, str], list[Profile]]:
    """(model, data) -> its layers under these groups; with tables where these are all and the numbers few enough."""
    frame = board.layers
    numbers = int(frame["metric"].notna().sum())
    frame = frame[frame["group"].isin(groups)]
    if numbers > BOUNDED:
        frame = frame.assign(lo=math.nan, hi=math.nan)
    tables: dict[Place, list[LayerTable]] = {}
    if numbers <= NUMBERS and all(group in groups for _, _, group in found):
        for key, own in frame.groupby(["model", "data", "group"], sort=False):
            model, data, group = map(str, key)
            tables[model, data, group] = [_table(str(probe), part) for probe, part in own.groupby("probe", sort=False)]
    made: dict[tuple[str, str], list[Profile]] = {}
    best = frame.groupby(["model", "data", "group", "layer"], sort=False, as_index=False)["coverage"].max()
    counts: dict[Place, list[bool]] = {}
    for model, data, group, _, coverage in best.itertuples(index=False, name=None):
        counts.setdefault((model, data, group), []).append(coverage > 0)
    for (model, data, group), (metric, points) in found.items():
        if group in groups:
            had = counts[model, data, group]
            own_tables = tables.get((model, data, group), [])
            curve, heading = _curve(group, metric, points), _heading(metric, points)
            made.setdefault((model, data), []).append(Profile(group, sum(had), len(had), curve, heading, own_tables))
    return made


def curves(frame: pd.DataFrame) -> Curves:
    """Each row's layers along depth in the metric that tells most: the permuted error, else the first there is."""
    places: dict[Place, list[str]] = {}
    rows = frame[["model", "data", "group", "metric"]].drop_duplicates()
    for model, data, group, metric in rows.itertuples(index=False, name=None):
        places.setdefault((model, data, group), []).append(metric)
    order = [PERMUTED, *METRICS]
    best = {key: next((name for name in order if name in names), None) for key, names in places.items()}
    found: Curves = {key: (METRICS[name] if name else None, []) for key, name in best.items()}
    keys = ["value", "lo", "hi", "init", "init_lo", "init_hi"]
    own = maps(frame[frame["metric"].isin({name for name in best.values() if name})])
    for model, data, group, metric, depth, *values in own[
        ["model", "data", "group", "metric", "depth", *keys]
    ].itertuples(index=False, name=None):
        if best[model, data, group] == metric:
            found[model, data, group][1].append((depth, dict(zip(keys, values, strict=True))))
    return found


def _heading(metric: Metric | None, points: list[Point]) -> str:
    """The metric and the ends of its values, trained and untrained."""
    if metric is None:
        return ""
    ends = []
    for key in ("value", "init"):
        known = [values[key] for _, values in points if not math.isnan(values[key])]
        ends.append(f"{number(min(known))}–{number(max(known))}" if known else "—")
    return f"{metric.symbol} {ends[0]}, untrained {ends[1]}"


def _curve(group: str, metric: Metric | None, points: list[Point]) -> Markup:
    """The trained and the untrained metric over depth, each with its interval, from 0 up to the larger of 1 and its peak."""
    if metric is None or not points:
        return Markup("")
    peak = max([1.0, *(v[key] for _, v in points for key in ("value", "init") if not math.isnan(v[key]))])
    points = thinned(points)
    marks = [mark for state in ("init", "value") for mark in _marks(state, points, metric)]
    return chart(f"{metric.title} over depth under {group}", marks, (0, 1), (0, peak), ("first layer", "last"))


def _marks(state: str, points: list[Point], metric: Metric) -> Iterator[Line | Band]:
    look, word, low, high = (
        ("trained", "trained", "lo", "hi") if state == "value" else ("untrained", "untrained", "init_lo", "init_hi")
    )
    bounded = [(d, v[low], v[high]) for d, v in points if not math.isnan(v[low] + v[high])]
    if bounded:
        depths, lows, highs = zip(*bounded, strict=True)
        yield Band(depths, lows, highs, "fill" if state == "value" else "band")
    values = [None if math.isnan(v[state]) else v[state] for _, v in points]
    yield Line([d for d, _ in points], values, look, word)


def _table(probe: str, frame: pd.DataFrame) -> LayerTable:
    present = set(frame["metric"].dropna())
    metrics = [metric for name, metric in METRICS.items() if name in present]
    rows = []
    for layer, own in frame.groupby("layer", sort=False):
        first, by = own.iloc[0], own.set_index("metric")
        cells = [_cell(by.loc[m.name]) if m.name in by.index else "—" for m in metrics]
        refused = (first["reason"] or "no reason is given") if by.index.isna().all() else None
        place = {"layer": layer, "depth": f"{first['depth']:.2f}", "shape": first["shape"]}
        rows.append(place | {"cells": cells, "refused": refused})
    return LayerTable(probe, metrics, rows)


def _cell(numbers: Any) -> str:
    """Value, interval and untrained value, a line each."""
    lines = [number(numbers["value"])]
    if pd.notna(numbers["lo"]) and pd.notna(numbers["hi"]):
        lines.append(f"[{number(numbers['lo'])}, {number(numbers['hi'])}]")
    if numbers.name != INDEX:
        lines.append(number(numbers["init"]))
    return "\n".join(lines)
