"""The permuted layer error over training, by thirds of the depth: where in a network symmetry came first (no torch)."""

from matplotlib.figure import Figure

from eqbench.leaderboard import Board
from eqbench.metrics import METRICS
from eqbench.plots import over_training
from eqbench.plots.drawing import Titles
from eqbench.plots.over_training import Strip
from eqbench.profiles import PERMUTED
from eqbench.trajectories import THIRDS, Curve, thirds

GROUPS = 2
CAPTION = (
    f"Permuted layer error over training in the early, middle and late third of the layers, under at most {GROUPS} groups: "
    "0 is a layer whose channels exchange exactly as the group moves the image. "
    f"Drawn is {over_training.READ}; a band is as wide as for layers that share their images."
)


def draw(board: Board, titles: Titles) -> Figure | None:
    """The figure, or None for a board without states between the untrained and the trained; `titles` gets what its marks are."""
    found: dict[tuple[str, str, str], dict[str, Curve]] = {}
    for ((model, data, group), third), points in thirds(board).items():
        if len(points) > 2:
            found.setdefault((data, group, third), {})[model] = points
    shown = list(dict.fromkeys(key[:2] for key in found))[:GROUPS]
    several = len({data for data, _ in shown}) > 1
    strips = []
    for data, group in shown:
        for third in THIRDS:
            if (data, group, third) in found:
                where = f"{group}, {data}" if several else group
                label = f"{METRICS[PERMUTED].symbol}, {where}"
                strips.append(Strip(label, f"{third.capitalize()} layers", found[data, group, third]))
    return over_training.drawn(board, titles, strips)
