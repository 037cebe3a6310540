"""The Lie ratio of every model and continuous group, trained beside untrained (no torch)."""

from matplotlib.figure import Figure

from eqbench.leaderboard import Board
from eqbench.metrics import METRICS
from eqbench.plots import forest
from eqbench.plots.drawing import Titles, colours_of, panels

CAPTION = (
    "Lie ratio of every model, a panel a continuous group: how far the logits move along the group, relative to a direction of the "
    "same spectrum without symmetry (line at 1). Filled: trained; hollow: untrained; bars: 95 % intervals; "
    "at most 24 models, the best."
)
NAME = "lie_ratio"


def draw(board: Board, titles: Titles) -> Figure | None:
    """The figure, or None for a board without its numbers; `titles` gets what its marks are."""
    if NAME not in METRICS or board.table[NAME].isna().all():
        return None
    metric, table = METRICS[NAME], board.table.dropna(subset=[NAME])
    shown, colours = forest.rows(table, metric), colours_of(board)
    figure, grid = panels([list(dict.fromkeys(table["group"]))], height=0.75 + 0.24 * len(shown))
    for group, axes in grid.items():
        axes.axvline(1, color="#bbbbbb", linewidth=2.5, zorder=1)
        forest.panel(axes, table[table["group"] == group], metric, shown, colours, group, titles)
    axes.set_xlim(left=0)
    figure.supxlabel(f"{metric.title} {metric.symbol} (lower: more equivariant)", fontsize=9)
    figure.legend(handles=forest.LEGEND, loc="outside upper left", ncols=2, fontsize=8, handletextpad=0.4)
    return figure
