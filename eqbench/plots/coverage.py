"""What became of the cells of every model under every probe (no torch)."""

from collections import Counter

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from eqbench.cells import MISSING, STALE
from eqbench.leaderboard import Board
from eqbench.plots.drawing import WIDTH, Titles
from eqbench.results import Status

CAPTION = (
    "How much of the plan is measured: each box is cut by what became of the cells of one model (of one family, on a board of "
    "more than 30 rows) and one probe, with how many of them have numbers. A cell that was skipped cannot be measured there; "
    "a stale one answers another configuration."
)
ROWS = 30  # up to which each model has its own; more are told by family
# Colours that differ in lightness, and hatches: the legend holds in print and for every kind of colour vision.
LOOKS = {
    str(Status.ok): ("#56B4E9", ""),
    str(Status.failed): ("#D55E00", "xxxx"),
    STALE: ("#F0E442", "...."),
    str(Status.skipped): ("#d9d9d9", ""),
    MISSING: ("#ffffff", "////"),
}


def draw(board: Board, titles: Titles) -> Figure | None:
    """The figure, or None where nothing was run; `titles` gets what its boxes are."""
    if board.counts[MISSING] == len(board.plan.cells):
        return None
    counts = matrix(board)
    rows = list(dict.fromkeys(row for row, _ in counts))
    probes = list(dict.fromkeys(cell.probe for cell in board.plan.cells))
    left = 0.25 + 0.068 * max(len(f"{row}") for row in rows)
    box = min((WIDTH - left) / len(probes), 1.3)
    figure = Figure(figsize=(left + box * len(probes) + 0.15, 1.35 + 0.3 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for (row, probe), found in counts.items():
        i, j, total, start = rows.index(row), probes.index(probe), found.total(), 0.0
        for status, (colour, hatch) in LOOKS.items():
            if found[status]:
                width = 0.94 * found[status] / total
                axes.barh(
                    i, width, 0.8, j + 0.03 + start, color=colour, hatch=hatch, edgecolor="#666666", linewidth=0.4
                )
                start += width
        pad = {"facecolor": "white", "edgecolor": "none", "pad": 1.2, "alpha": 0.85}
        gid = f"box-{i}-{j}"
        axes.text(j + 0.5, i, f"{found['ok']}/{total}", ha="center", va="center", fontsize=7.5, bbox=pad, gid=gid)
        said = ", ".join(f"{found[status]} {status}" for status in LOOKS if found[status])
        titles[gid] = [f"{row}, {probe}: {said}"]
    axes.set(xlim=(0, len(probes)), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xticks([j + 0.5 for j in range(len(probes))], probes, rotation=40, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    handles = [Patch(facecolor=colour, hatch=hatch, edgecolor="#666666", linewidth=0.4, label=status)
               for status, (colour, hatch) in LOOKS.items() if board.counts[status]]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), fontsize=8)
    return figure


def matrix(board: Board) -> dict[tuple[str, str], Counter[str]]:
    """(row, probe) -> how many cells have each status; a row is `data / model`, or a family of a large board."""
    places = {(board.plan.data(cell), cell.model) for cell in board.plan.cells}
    labels = {place: f"{place[0]} / {place[1]}" for place in sorted(places)}
    if len(labels) > ROWS:
        families = {model: str(facts.get("family") or "unknown") for model, facts in board.facts.items()}
        labels = {place: families[place[1]] for place in sorted(places, key=lambda place: families[place[1]])}
    counts: dict[tuple[str, str], Counter[str]] = {}
    order = {label: i for i, label in enumerate(labels.values())}
    for cell in sorted(board.plan.cells, key=lambda cell: order[labels[board.plan.data(cell), cell.model]]):
        key = labels[board.plan.data(cell), cell.model], cell.probe
        counts.setdefault(key, Counter())[board.status(cell)] += 1
    return counts
