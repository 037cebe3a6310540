"""Symmetry against every outcome that the analysis asks about, a panel an outcome (no torch)."""

import pandas as pd
from matplotlib.figure import Figure

from eqbench.analysis import FEWEST, named
from eqbench.leaderboard import Board
from eqbench.metrics import METRICS
from eqbench.panelpoints import BETWEEN, Question, points
from eqbench.plots.drawing import Titles, by_label, colours_of, legend, panels

CAPTION = (
    "What symmetry goes with: the symmetry loss share (of images without labels the Jensen–Shannon share) of trained networks, under the first group "
    f"that at least {FEWEST} independent ones have numbers of, against their accuracy, robustness, accuracy when trained on fewer images, and "
    "sharpness. A point is a network, the mean over the seeds that have both numbers; the analysis has the rank correlations under all groups, with "
    "their intervals."
)


def draw(board: Board, titles: Titles) -> Figure | None:
    """The figure, or None for a board without its numbers; `titles` gets what its marks are."""
    shown: dict[str, Question] = {}
    found = {asked: own for asked, own in points(board).items() if asked.scope == BETWEEN}
    found = {asked: own for asked, own in found.items() if len({point.source for point in own}) >= FEWEST}
    first = {data: next(asked.group for asked in found if asked.data == data) for data in {key.data for key in found}}
    for asked in found:
        if asked.group == first[asked.data]:
            shown[f"{named(asked.outcome)}, {asked.data}"] = asked
    if not shown:
        return None
    colours = colours_of(board)
    figure, grid = panels([list(shown)], share=False)
    for i, (title, asked) in enumerate(shown.items()):
        axes, share = grid[title], METRICS[asked.symmetry]
        frame = pd.DataFrame([vars(point) for point in found[asked]])
        for k, (colour, marker, own) in enumerate(by_label(frame, colours)):
            gid = f"buys-{i}-{k}"
            axes.scatter(own["share"], own["outcome"], 26, marker=marker, color=colour, gid=gid)
            titles[gid] = [
                f"{model}: {share.symbol} {x:.3g} under {asked.group}, {named(asked.outcome)} {y:.3g}"
                for model, x, y in zip(own["model"], own["share"], own["outcome"], strict=True)
            ]
        axes.set_title(title, fontsize=8, wrap=True)
        axes.set_xlabel(f"{share.symbol} under {asked.group}", fontsize=8)
        axes.set_xlim(left=0)
    legend(figure, colours, [point.model for asked in shown.values() for point in found[asked]], [])
    return figure
