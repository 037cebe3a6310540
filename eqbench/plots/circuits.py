"""Symmetry in the weights, and the census of units that a group exchanges, of every model (no torch)."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from eqbench.leaderboard import Board
from eqbench.metrics import METRICS
from eqbench.plots import forest
from eqbench.plots.drawing import PALETTE, WIDTH, Titles, colours_of
from eqbench.results import Status

CAPTION = (
    "Symmetry in the weights, a row a group: the weights' cosine with themselves moved by the group (grey tick: a random twin's), what it "
    "exceeds the placebo's by, and the census of units, by how many the group exchanges (mean over layers and seeds; thin: untrained). "
    "Bars: 95 % intervals over units; at most twelve models, the most symmetric, and eight groups; a placebo that was learned gives no gap."
)
SYMMETRY, GAP = "weight_symmetry", "weight_gap"
MODELS, GROUPS = 12, 8
KINDS = {"fixed": PALETTE[0], "pair": PALETTE[1], "orbit4": PALETTE[2], "other": PALETTE[3], "unmatched": "#d9d9d9"}
WORDS = {"fixed": "fixed", "pair": "pairs", "orbit4": "orbits of 4", "other": "other sizes", "unmatched": "unmatched"}


def draw(board: Board, titles: Titles) -> Figure | None:
    """The figure, or None for a board without its numbers; `titles` gets what its marks are."""
    counted, table = census(board), board.table[board.table[SYMMETRY].notna() | board.table[GAP].notna()]
    groups = [group for group in dict.fromkeys(board.table["group"]) if group in {*table["group"], *counted["group"]}]
    groups = groups[:GROUPS]
    if not groups:
        return None
    shown = forest.rows(table, METRICS[SYMMETRY])
    shown += [key for key in dict.fromkeys(zip(counted["model"], counted["data"], strict=True)) if key not in shown]
    shown, colours = shown[:MODELS], colours_of(board)
    figure = Figure(figsize=(WIDTH, (0.55 + 0.24 * len(shown)) * len(groups) + 0.6), layout="constrained")
    grid: Any = figure.subplots(len(groups), 3, squeeze=False, sharey=True, sharex="col")
    for i, group in enumerate(groups):
        own = table[table["group"] == group]
        for axes, name in zip(grid[i], (SYMMETRY, GAP), strict=False):
            axes.axvline(0, color="#bbbbbb", linewidth=2.5, zorder=1)
            forest.panel(axes, own, METRICS[name], shown, colours, f"{group}-{name}", titles)
        _bars(grid[i, 2], counted[counted["group"] == group], shown, group, titles)
        grid[i, 0].set_title(group)
    for axes, name in zip(grid[-1], (SYMMETRY, GAP), strict=False):
        axes.set_xlabel(f"{METRICS[name].title} {METRICS[name].symbol}", fontsize=8)
    grid[-1, 2].set_xlabel("Share of units", fontsize=8)
    patches = [Patch(color=colour, label=WORDS[kind]) for kind, colour in KINDS.items()]
    figure.legend(handles=[*forest.LEGEND, *patches], loc="outside upper left", ncols=7, fontsize=8, handletextpad=0.4)
    return figure


def census(board: Board) -> pd.DataFrame:
    """Shares of units by kind, a row a (model, data, group, state): the mean over layers, then over seeds."""
    found = []
    for cell, result in board.results.items():
        layers = result.curves.get("census") if result.status is Status.ok and cell.probe == "circuits" else None
        if layers and cell.state in ("final", "init"):
            mean = {kind: sum(layer[kind] for layer in layers) / len(layers) for kind in KINDS}
            found.append(
                {"model": cell.model, "data": board.plan.data(cell), "group": cell.group, "state": cell.state} | mean
            )
    keys = ["model", "data", "group", "state"]
    return pd.DataFrame(found, columns=[*keys, *KINDS]).groupby(keys, sort=False, as_index=False).mean()


def _bars(axes: Axes, counted: pd.DataFrame, shown: Sequence[forest.Row], group: str, titles: Titles) -> None:
    """Stacked bars: thick where trained, thin below where untrained."""
    places = {key: i for i, key in enumerate(shown)}
    for state, offset, height in (("final", -0.12, 0.42), ("init", 0.25, 0.16)):
        own = counted[counted["state"] == state]
        own = own.loc[[key in places for key in zip(own["model"], own["data"], strict=True)]]
        left = [0.0] * len(own)
        y = [places[key] + offset for key in zip(own["model"], own["data"], strict=True)]
        for kind, colour in KINDS.items():
            for k, bar in enumerate(axes.barh(y, own[kind], height, left, color=colour, linewidth=0)):
                word = {"final": "trained", "init": "untrained"}[state]
                gid = f"bar-{group}-{state}-{kind}-{k}"
                bar.set_gid(gid)
                row = own.iloc[k]
                titles[gid] = [f"{row['model']} on {row['data']}, {group}, {word}: {row[kind]:.1%} {WORDS[kind]}"]
            left = [a + b for a, b in zip(left, own[kind], strict=True)]
    axes.set(xlim=(0, 1), xticks=[0, 0.5, 1])
    axes.tick_params(axis="y", length=0)
