"""One metric of every model, trained beside untrained, a panel a group: intervals side by side (no torch)."""

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from eqbench.metrics import Metric
from eqbench.plots.drawing import Colours, Marks, Titles, mark

MODELS = 24  # a board of more shows the best: larger figures are not read
LEGEND = (mark("o", "#666666", "trained"), mark("o", "#666666", "untrained", hollow=True))

Row = tuple[str, str]  # model, data


def rows(table: pd.DataFrame, metric: Metric) -> list[Row]:
    """The (model, data) that have the metric, best mean first, at most `MODELS`."""
    mean = table.groupby(["model", "data"])[metric.name].mean().dropna()
    return list(mean.sort_values(ascending=not metric.higher_is_better, kind="stable").index)[:MODELS]


def panel(
    axes: Axes, table: pd.DataFrame, metric: Metric, shown: Sequence[Row], colours: Colours, place: str, titles: Titles
) -> None:
    """Draw the rows of one group into `axes`: a model a line, its untrained twin below it."""
    names = [f"{metric.name}{state}{end}" for state in ("", "_init") for end in ("", "_lo", "_hi", "_null")]
    by = {(row["model"], row["data"]): row for row in table[["model", "data", "group", *names]].to_dict("records")}
    marks = Marks(axes, f"mark-{place}")
    bars: list[tuple[float, float, float, str, float]] = []  # y, ends, colour, width
    nulls: list[tuple[float, float]] = []
    for i, key in enumerate(shown):
        row, (colour, marker, _) = by.get(key), colours[key[0]]
        for end, y, state in (("", i - 0.12, "trained"), ("_init", i + 0.2, "untrained")):
            name = metric.name + end
            if row is None or math.isnan(row[name]):
                continue
            value, low, high = (row[f"{name}{side}"] for side in ("", "_lo", "_hi"))
            bounds = f" [{low:.3g}, {high:.3g}]" if not math.isnan(low) else ""
            title = f"{key[0]} on {key[1]}, {row['group']}, {state}: {metric.symbol} {value:.3g}{bounds}"
            marks.add(value, y, marker, 14 if end else 22, colour, title, hollow=bool(end))
            bars.append((y, low, high, colour, 0.8 if end else 1.2))
            nulls.append((row[f"{name}_null"], y))
    if bars:
        ys, lows, highs, ink, widths = zip(*bars, strict=True)
        axes.hlines(ys, lows, highs, colors=ink, linewidths=widths)
    marks.draw(titles)
    known = [place for place in nulls if not math.isnan(place[0])]
    axes.plot(*zip(*known, strict=True), "|", color="#999999", markersize=6, zorder=1) if known else None
    axes.set_yticks(range(len(shown)), [f"{data} / {model}" for model, data in shown], fontsize=8)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
