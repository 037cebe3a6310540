"""The figures of a board, one a module: drawn from its tables and its cells' curves alone (no torch).

`figures/<name>.svg` stands in the page, `<name>.pdf` in a paper, and `<name>.rst` is the caption of both.
"""

import io
import re
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from eqbench.leaderboard import Board
from eqbench.plots import (
    certificate,
    circuits,
    coverage,
    critical_difference,
    density,
    dynamics,
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
    symmetry_buys,
    tradeoff,
    trajectories,
    trajectories_by_layer,
    trajectories_landscape,
)
from eqbench.plots.drawing import STYLE, Titles, words
from eqbench.plots.svg import svg
from eqbench.results import write_bytes, write_text

# In the order of the page. Each has a CAPTION and `draw(board, titles)`, which is None for a board without its numbers.
DRAWINGS = {
    "tradeoff": tradeoff,
    "symmetry_buys": symmetry_buys,
    "heatmap": heatmap,
    "emergence": emergence,
    "critical_difference": critical_difference,
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
    "trajectories": trajectories,
    "trajectories_by_layer": trajectories_by_layer,
    "trajectories_landscape": trajectories_landscape,
    "dynamics": dynamics,
    "coverage": coverage,
}
EMPTY = "No finished cells hold the numbers of the figure"
FIGURES: dict[str, str] = {name: drawing.CAPTION for name, drawing in DRAWINGS.items()}


def plot(board: Board, out_dir: Path) -> list[Path]:
    """Write figures/<name>.svg, .pdf and .rst below `out_dir` for each name in `FIGURES`; returns the paths.

    A board without the numbers that a figure needs gets a figure that says so.
    """
    folder, paths = out_dir / "figures", []
    for name, drawing in DRAWINGS.items():
        titles: Titles = {}
        title = drawing.CAPTION.split(".")[0]
        with matplotlib.rc_context(STYLE):
            figure = drawing.draw(board, titles)
            if figure is None:
                figure = words(f"{EMPTY} “{name}”.")
                matplotlib.rcParams["pdf.fonttype"] = (
                    3  # a TrueType subset takes half a second, and no journal wants this one
                )
            text = svg(figure, name, title, drawing.CAPTION, titles)
            figure.set_layout_engine("none")  # what the SVG was laid out as, the PDF is
            printed = _pdf(figure, title, drawing.CAPTION)
        write_text(folder / f"{name}.svg", text)
        write_bytes(folder / f"{name}.pdf", printed)
        write_text(folder / f"{name}.rst", restructured(drawing.CAPTION) + "\n")
        paths += [folder / f"{name}.{kind}" for kind in ("svg", "pdf", "rst")]
    return paths


def restructured(text: str) -> str:
    r"""Plain text as reStructuredText that reads the same.

    >>> print(restructured("E_G* of |g|"))
    E\_G\* of \|g\|
    """
    return re.sub(r"([\\`*_|])", r"\\\1", text)


def _pdf(figure: Figure, title: str, caption: str) -> bytes:
    """The figure as PDF, its fonts within it, whose bytes depend on nothing but what it shows."""
    out = io.BytesIO()
    undated = dict.fromkeys(("Creator", "Producer", "CreationDate"))
    figure.savefig(out, format="pdf", metadata={"Title": title, "Subject": caption, **undated})
    return out.getvalue()
