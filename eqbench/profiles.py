"""Layer profiles: every layered metric over a network's depth, trained beside untrained, pooled over seeds (no torch)."""

import math
from typing import Any

import pandas as pd

from eqbench.cells import Cells
from eqbench.inference import spread
from eqbench.metrics import METRICS
from eqbench.pooling import emergence_index, pool
from eqbench.results import Layer, Measure, Status

PERMUTED, INDEX = "layer_error_permuted", "emergence_index"
KEYS = ["model", "data", "group", "probe", "layer", "depth", "shape", "coverage", "reason", "metric"]
NUMBERS = ["value", "lo", "hi", "floor", "null", "init", "init_lo", "init_hi", "init_null"]
COLUMNS = KEYS + NUMBERS

Place = tuple[str, str, str, str, str]  # model, data, group, probe, layer


def layers(cells: Cells) -> pd.DataFrame:
    """A row a (model, data, group, probe, layer, metric), in order of execution (columns: `COLUMNS`).

    `value` … `null` are of the trained network, `init` … of the untrained one, both pooled over seeds as on the board.
    A layer that was refused has one row, without a metric, and its `reason`. `emergence_index` is added where a layer has
    the permuted error both trained and untrained.
    """
    places: dict[Place, Layer] = {}
    found: dict[Place, dict[str, dict[str, list[Measure]]]] = {}
    for cell in cells.plan.cells:
        result = cells.results.get(cell)
        if result is None or result.status is not Status.ok or cell.state not in ("final", "init"):
            continue
        for layer in result.layers:
            key = (cell.model, cells.plan.data(cell), cell.group, cell.probe, layer.name)
            places.setdefault(key, layer)
            own = found.setdefault(key, {})
            for name, measure in layer.metrics.items():
                if name in METRICS:
                    own.setdefault(name, {}).setdefault(cell.state, []).append(measure)
    seeds: dict[tuple[str, ...], list[list[float]]] = {}  # by number, of all models and layers
    for (_, *where, _), own in found.items():
        for name, by in own.items():
            for state, measures in by.items():
                known = [measure.value for measure in measures if measure.value is not None]
                seeds.setdefault((*where, name, state), []).append(known)
    spreads = {number: spread(networks) for number, networks in seeds.items()}
    rows: list[tuple[Any, ...]] = []
    for key, layer in places.items():
        place = *key, layer.depth, "×".join(map(str, layer.shape)), layer.coverage, layer.reason
        pooled = {
            name: tuple(pool(by.get(state, []), spreads.get((*key[1:4], name, state))) for state in ("final", "init"))
            for name, by in found[key].items()
        }
        if {"final", "init"} <= found[key].get(PERMUTED, {}).keys():
            pooled[INDEX] = emergence_index(*pooled[PERMUTED]), pool([])
        for name in [name for name in METRICS if name in pooled]:
            final, init = pooled[name]
            numbers = (
                final.value,
                final.lo,
                final.hi,
                final.floor,
                final.null,
                init.value,
                init.lo,
                init.hi,
                init.null,
            )
            rows.append((*place, name, *numbers))
        if not pooled:
            rows.append((*place, None, *[None] * len(NUMBERS)))
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame.astype(dict.fromkeys(["depth", "coverage", *NUMBERS], float))


def maps(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of layers whose positions form a map: those of prefix tokens left out, which stand at the same depth."""
    return frame[~frame["layer"].str.contains(":", regex=False)]


def leading(frame: pd.DataFrame, table: pd.DataFrame, count: int) -> list[tuple[str, str]]:
    """The (model, data) of `frame` that a figure shows: all, or the `count` with the largest mean emergence index.

    They come in the order of the frame.
    """
    found = list(dict.fromkeys(zip(frame["model"], frame["data"], strict=True)))
    mean = table.groupby(["model", "data"])[INDEX].mean()
    order = sorted(found, key=lambda key: -mean.get(key, math.nan) if mean.get(key) == mean.get(key) else math.inf)
    return [key for key in found if key in order[:count]]
