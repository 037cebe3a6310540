"""The metric that ranks, of every trained model under every group (no torch)."""

import math
from collections.abc import Callable
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from eqbench.leaderboard import ALONE, Board
from eqbench.metrics import Metric
from eqbench.plots.drawing import WIDTH, Titles, rankings

CAPTION = (
    "The metric that ranks, of each trained model under each group, one scale a metric: lower is more equivariant. "
    "Hatched: a cell behind the number failed, was skipped, is stale or was not run, or no input size is aligned (a board of "
    "more than 40 rows: grey, values in the table)."
)
PRINTED = 40  # rows up to which the heat map prints its values
SLANTED: Any = {"rotation": 40, "ha": "left", "rotation_mode": "anchor"}
SCALE = 0.85  # inches that a colour scale takes

Row = tuple[str, str]  # data, model


def draw(board: Board, titles: Titles) -> Figure | None:
    """The figure, or None for a board without its numbers; `titles` gets what its marks are."""
    metrics = list(rankings(board.table))
    if not metrics:
        return None
    keys = ["data", "model", "group", "status", "unranked"]
    tables = [board.table[[*keys, m.name]][board.table["ranked_by"] == m.name] for m in metrics]
    groups = [list(dict.fromkeys(table["group"])) for table in tables]
    rows: list[Row] = sorted({row for table in tables for row in zip(table["data"], table["model"], strict=True)})
    labels = [f"{data} / {model}" for data, model in rows]
    few = len(rows) <= PRINTED
    count, words = sum(map(len, groups)), max(len(group) for own in groups for group in own)
    left, top = 0.25 + 0.068 * max(map(len, labels)), 0.45  # inches
    box = min((WIDTH - left - SCALE * len(metrics)) / count, max(0.7, 1.3 - 0.1 * count))
    crowded = any(len(group) * 0.08 + 0.15 > box for own in groups for group in own)
    top += 0.06 * words if crowded else 0
    width = left + box * count + SCALE * len(metrics)
    height = top + 0.1 + len(rows) * (0.33 if few else max(0.05, 9 / len(rows)))
    figure = Figure(figsize=(width, height))
    bottom, share = 0.1 / height, (height - top - 0.1) / height
    step = 1 if few else math.ceil(len(rows) / 90)
    for k, (metric, table, own) in enumerate(zip(metrics, tables, groups, strict=True)):
        axes = figure.add_axes((left / width, bottom, box * len(own) / width, share))
        paint = _scale(figure, metric, float(table[metric.name].max()), left + box * len(own), bottom, share)
        if few:
            _boxes(axes, metric, table, rows, own, paint, f"box-{k}" if k else "box", titles)
        else:
            _image(axes, metric, table, rows, own, paint)
        axes.set(xlim=(0, len(own)), ylim=(len(rows), 0))
        axes.set_xticks([j + 0.5 for j in range(len(own))], own, **(SLANTED if crowded else {}))
        places = [i + 0.5 for i in range(0, len(rows), step)]
        axes.set_yticks(places, labels[::step] if not k else [""] * len(places), fontsize=9 if few else 5)
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        axes.spines[:].set_visible(False)
        left += box * len(own) + SCALE
    return figure


def _scale(
    figure: Figure, metric: Metric, peak: float, left: float, bottom: float, share: float
) -> Callable[[Any], Any]:
    """Draw a metric's colour scale from 0 to the larger of 1 and its peak, and return value -> colour."""
    peak, colours = max(1.0, peak), matplotlib.colormaps["cividis"]
    axes = figure.add_axes(((left + 0.2) / figure.get_figwidth(), bottom, 0.14 / figure.get_figwidth(), share))
    for k in range(50):
        axes.add_patch(Rectangle((0, peak * k / 50), 1, peak / 50, color=colours(k / 49)))
    axes.set(xlim=(0, 1), ylim=(0, peak), xticks=[])
    axes.set_title(metric.symbol, loc="center", fontweight="normal")
    axes.yaxis.tick_right()
    axes.spines[:].set_visible(False)
    norm = Normalize(0, peak)
    return lambda value: colours(norm(value))


def _image(
    axes: Axes, metric: Metric, table: pd.DataFrame, rows: list[Row], groups: list[str], paint: Callable[[Any], Any]
) -> None:
    """One picture of all ranked rows, without text: a large board."""
    known = table[table["unranked"].isna()].set_index(["data", "model", "group"])[metric.name]
    grid = known.unstack("group").reindex(index=rows, columns=groups)
    axes.set_facecolor("#ececec")
    colours = paint(grid.to_numpy(float))
    colours[grid.isna().to_numpy()] = 0
    axes.imshow(colours, aspect="auto", interpolation="nearest", extent=(0, len(groups), len(rows), 0))


def _boxes(
    axes: Axes,
    metric: Metric,
    table: pd.DataFrame,
    rows: list[Row],
    groups: list[str],
    paint: Callable[[Any], Any],
    stem: str,
    titles: Titles,
) -> None:
    """One box a row of the table, with its value, hatched where the row has no rank."""
    for row in table.to_dict("records"):
        i, j = rows.index((row["data"], row["model"])), groups.index(row["group"])
        value, ranked = row[metric.name], not isinstance(row["unranked"], str) or row["unranked"] == ALONE
        face = "#ececec" if math.isnan(value) else paint(value)
        ink = "#222222" if math.isnan(value) or sum(face[:3]) > 1.35 else "white"
        shown = row["status"] if math.isnan(value) else f"{value:.2f}"
        gid = f"{stem}-{i}-{j}"
        axes.add_patch(Rectangle((j, i), 1, 1, facecolor=face, edgecolor="white", gid=gid))
        titles[gid] = [
            f"{row['model']} on {row['data']}, {row['group']}: {shown}" + ("" if ranked else f" ({row['unranked']})")
        ]
        if not ranked:
            axes.add_patch(Rectangle((j, i), 1, 1, fill=False, hatch="////", edgecolor=ink, linewidth=0, alpha=0.5))
        pad = None if ranked else {"facecolor": face, "edgecolor": "none", "pad": 1.5}
        axes.text(j + 0.5, i + 0.5, shown, ha="center", va="center", color=ink, fontsize=8.5, bbox=pad)
