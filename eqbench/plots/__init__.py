"""The figures of a board, one a file: drawn from its tables and its cells' curves alone (no torch)."""

from pathlib import Path

import matplotlib

from eqbench.leaderboard import Board
from eqbench.plots import (
    certificate,
    circuits,
    density,
    emergence,
    emergence_by_layer,
    families,
    group_landscape,
    heatmap,
    layers,
    lie,
    lie_by_layer,
    sharpness,
    slices,
    spectrum,
    surfaces,
    sweep,
    tradeoff,
)
from eqbench.plots.drawing import STYLE, Titles, words
from eqbench.plots.svg import svg
from eqbench.results import write_text

# In the order of the page. Each has a CAPTION and `draw(board, titles)`, which is None for a board without its numbers.
DRAWINGS = {
    "tradeoff": tradeoff,
    "heatmap": heatmap,
    "emergence": emergence,
    "layers": layers,
    "emergence_by_layer": emergence_by_layer,
    "lie": lie,
    "lie_by_layer": lie_by_layer,
    "sweep": sweep,
    "circuits": circuits,
    "families": families,
    "spectrum": spectrum,
    "certificate": certificate,
    "density": density,
    "group_landscape": group_landscape,
    "sharpness": sharpness,
    "slices": slices,
    "surfaces": surfaces,
}
EMPTY = "No finished cells hold the numbers of the figure"
FIGURES: dict[str, str] = {name: drawing.CAPTION for name, drawing in DRAWINGS.items()}


def plot(board: Board, out_dir: Path) -> list[Path]:
    """Write figures/<name>.svg below `out_dir` for each name in `FIGURES`; returns their paths.

    A board without the numbers that a figure needs gets a figure that says so.
    """
    paths = []
    for name, drawing in DRAWINGS.items():
        titles: Titles = {}
        with matplotlib.rc_context(STYLE):
            figure = drawing.draw(board, titles) or words(f"{EMPTY} “{name}”.")
            text = svg(figure, name, drawing.CAPTION.split(".")[0], drawing.CAPTION, titles)
        paths.append(out_dir / "figures" / f"{name}.svg")
        write_text(paths[-1], text)
    return paths
