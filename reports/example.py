"""One figure from a board's numbers: what training changed, a panel a group and a line a network.

    python reports/example.py reports/demo example.svg
"""

import sys

import matplotlib.pyplot as plt

from eqbench.results import read_results

board, picture = sys.argv[1:]
METRIC = "lattice_error_aligned"

frame = read_results(board)
# Numbers of whole networks have no layer; seeds are averaged.
errors = frame[(frame["metric"] == METRIC) & frame["layer"].isna()]
mean = errors.groupby(["group", "model", "state"], sort=False)["value"].mean().unstack("state")

groups = mean.index.unique("group")
figure, panels = plt.subplots(
    1, len(groups), figsize=(2.4 * len(groups), 3), sharey=True, squeeze=False, layout="constrained"
)
for axes, group in zip(panels.flat, groups, strict=True):
    for model, row in mean.loc[group].iterrows():
        axes.plot(["untrained", "trained"], [row["init"], row["final"]], marker="o", label=model)
    axes.set(title=group, ylim=(0, None))
panels[0, 0].set_ylabel("Lattice error")
panels[0, -1].legend(fontsize=7)
figure.savefig(picture)
