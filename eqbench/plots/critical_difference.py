"""Mean ranks over groups with the critical difference, a panel a ranking (no torch)."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eqbench.columns import number
from eqbench.leaderboard import Board
from eqbench.meanranks import MeanRanks, mean_ranks
from eqbench.metrics import METRICS
from eqbench.plots.drawing import WIDTH, Colours, Marks, Titles, colours_of

CAPTION = (
    "Mean ranks of the trained networks over groups (1 is best), of those that are ranked under all of them. A thick bar joins "
    "networks whose mean ranks differ by less than the critical difference CD (Friedman's test, then Nemenyi's, at 5 %; "
    "Demšar 2006); where Friedman's test finds no difference at all, it joins all of them; groups that share elements, "
    "such as hflip and d4, are no independent blocks, so that the bars are the least that is undecided."
)
MODELS = 24  # a board of more shows the best, with the ranks that they have among all
LINE = 0.2  # inches a network or a bar takes


def draw(board: Board, titles: Titles) -> Figure | None:
    """The figure, or None for a board without its numbers; `titles` gets what its marks are."""
    found = mean_ranks(board.table)
    if not found:
        return None
    joined = [bars(ranking) for ranking in found]
    heights = [(len(some) + min(len(one.ranks), MODELS) + 5) * LINE for one, some in zip(found, joined, strict=True)]
    figure = Figure(figsize=(WIDTH * 0.75, sum(heights)), layout="constrained")
    panels = figure.subplots(len(found), 1, squeeze=False, height_ratios=heights)[:, 0]
    colours = colours_of(board)
    for place, (axes, ranking, some) in enumerate(zip(panels, found, joined, strict=True)):
        _panel(axes, ranking, some, colours, place, titles)
    return figure


def bars(ranking: MeanRanks) -> list[list[str]]:
    """The longest runs of networks, in order of mean rank, that are not known to differ; of those that the figure shows.

    >>> ranks = {"a": 1.0, "b": 1.5, "c": 2.4, "d": 4.0}
    >>> bars(MeanRanks("lie_ratio", "digits", ("rotation",), ranks, 0.01, 1.2))
    [['a', 'b'], ['b', 'c']]
    """
    models = list(ranking.ranks)[:MODELS]
    runs: list[list[str]] = []
    for i, model in enumerate(models):
        run = [other for other in models[i:] if not ranking.apart(model, other)]
        if len(run) > 1 and (not runs or run[-1] != runs[-1][-1]):
            runs.append(run)
    return runs


def _panel(
    axes: Axes, ranking: MeanRanks, joined: Sequence[Sequence[str]], colours: Colours, place: int, titles: Titles
) -> None:
    """A network a line below the axis of mean ranks, its name at the side that is nearer; bars between both."""
    shown = dict(list(ranking.ranks.items())[:MODELS])
    last, count = max(len(shown), 2), len(ranking.ranks)
    left, right = 0.7, max(max(shown.values()) + 0.3, 1.3 + ranking.distance)
    metric = METRICS[ranking.metric]
    axes.set_title(f"{metric.title} {metric.symbol} on {ranking.data}: {len(ranking.groups)} groups, {count} networks")
    for i, run in enumerate(joined):
        ends = ranking.ranks[run[0]] - 0.03, ranking.ranks[run[-1]] + 0.03
        gid = f"bar-{place}-{i}"
        axes.plot(ends, [-0.6 - i] * 2, color="#222222", linewidth=3.5, solid_capstyle="round", gid=gid)
        titles[gid] = [f"not known to differ: {', '.join(run)}"]
    below = -0.6 - len(joined)
    marks = Marks(axes, f"rank-{place}")
    for i, (model, rank) in enumerate(shown.items()):
        colour, marker, _ = colours[model]
        y = below - i
        axes.plot([rank, rank], [0, y], color=colour, linewidth=0.8, zorder=1)
        title = f"{model}: mean rank {rank:.3g} of {count} over {', '.join(ranking.groups)}"
        marks.add(rank, y, marker, 24, colour, title)
        beyond = rank > (left + right) / 2
        axes.annotate(f"{model} {rank:.3g}", (rank, y), (-7 if beyond else 7, 0), textcoords="offset points",
                      ha="right" if beyond else "left", va="center", fontsize=8,
                      bbox={"facecolor": "white", "linewidth": 0, "pad": 0.8})  # fmt: skip
    marks.draw(titles)
    p = f"Friedman p {'< 0.001' if ranking.p < 1e-3 else '= ' + number(ranking.p)}"
    axes.plot([1, 1 + ranking.distance], [1.3, 1.3], color="#222222", linewidth=1.2, marker="|", markersize=7)
    axes.annotate(f"CD {ranking.distance:.3g}; {p}", (1, 1.55), va="bottom", fontsize=8)
    axes.set_xlim(left, right)
    axes.set_ylim(below - last + 0.4, 2.9)
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.spines["top"].set_visible(True)
    axes.spines["top"].set_position(("data", 0))
    axes.xaxis.tick_top()
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_yticks([])
