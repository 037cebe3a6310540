"""A network over training: accuracy, symmetry, sharpness and weight symmetry from epoch to epoch (no torch)."""

from collections.abc import Iterator, Mapping

from eqbench.lineage import place
from eqbench.metrics import METRICS
from eqbench.minis import Line, chart
from eqbench.panels.base import SERIES, Own, Panel, ends
from eqbench.schema import UNGROUPED
from eqbench.trajectories import steady

# The numbers drawn: each a chart, a line a group; where no group decides a number, a line a seed.
SHOWN = ("accuracy", "symmetry_share", "js_share", "lie_ratio", "lambda_max", "weight_symmetry", "transverse_curvature")
ALIKE = ("accuracy", "lambda_max")

Values = dict[str, dict[int, dict[tuple[str, str], float]]]  # seed or group -> epoch -> its values


def trajectory(own: Own, epochs: Mapping[str, int]) -> Panel | None:
    """Numbers over the epochs that were measured between the untrained and the trained network; None: there are none.

    Args:
        epochs: state -> its epoch, in order, as `lineage.epochs` gives them.
    """
    if not epochs:
        return None
    last = max(epochs.values())
    charts = []
    for name, values in _numbers(own, epochs):
        lines = []
        for k, (what, by) in enumerate(values.items()):
            at = sorted(by)
            curve = [sum(by[epoch].values()) / len(by[epoch]) for epoch in at]
            lines.append(Line([place(epoch) for epoch in at], curve, f"s{k % SERIES}", f"{what}: {ends(curve)}"))
        drawn = [v for line in lines for v in line.y if v is not None]
        low, high = min(0.0, *drawn), max(drawn)
        title = METRICS[name].title
        figure = chart(f"{title} over training", lines, (0, place(last)), (low, max(high, low + 1e-9)),
                       ("untrained", f"epoch {last}"), METRICS[name].unit)  # fmt: skip
        each = "seed" if name in ALIKE else "group"
        charts.append((f"{title}, a line a {each}", figure))
    measured = ", ".join(str(epoch) for epoch in epochs.values()) if len(epochs) < 16 else f"{len(epochs)} states"
    note = f"Measured at epochs {measured}; the axis is logarithmic. Where lines are groups they are means over the seeds that have all their epochs."
    return Panel("trajectory", "Over training", charts, note) if charts else None


def _numbers(own: Own, epochs: Mapping[str, int]) -> Iterator[tuple[str, Values]]:
    """The numbers that some line has at three epochs or more."""
    for name in SHOWN:
        found: Values = {}
        for cell, result in own:
            measure = result.metrics.get(name)
            if (
                METRICS[name].probe != cell.probe
                or measure is None
                or measure.value is None
                or cell.state not in epochs
            ):
                continue
            key = cell.seed if name in ALIKE or cell.group == UNGROUPED else cell.group
            found.setdefault(key, {}).setdefault(epochs[cell.state], {})[cell.seed, cell.group] = measure.value
        found = {key: same for key, by in found.items() if len(same := steady(by)) > 2}
        if found:
            yield name, dict(sorted(found.items())) if name in ALIKE else found
