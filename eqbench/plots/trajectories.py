"""Accuracy and symmetry over training: when each network became accurate, and when symmetric (no torch)."""

from matplotlib.figure import Figure

from eqbench.leaderboard import Board
from eqbench.metrics import ACCURACY, SHARES
from eqbench.plots import over_training
from eqbench.plots.drawing import Titles

CAPTION = (
    "Emergence over training: test accuracy, and under each group the share of the loss that missing symmetry costs (the Lie ratio of a continuous "
    f"group): {over_training.READ}. "
    f"At most {over_training.GROUPS} groups; bands are cut where they would flatten the lines."
)


def draw(board: Board, titles: Titles) -> Figure | None:
    """The figure, or None for a board without states between the untrained and the trained; `titles` gets what its marks are."""
    accuracy = over_training.strips(board, [ACCURACY], most=1, alike=True)
    return over_training.drawn(board, titles, [*accuracy, *over_training.strips(board, [*SHARES, "lie_ratio"])])
