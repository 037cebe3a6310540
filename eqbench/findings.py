"""What a board says in plain words: the same questions of every board, each answered with its interval, or not at all (no torch).

The questions are fixed before any number is seen, and a page shows the first `SHOWN` that its board has numbers for, so none is
asked because its answer looks good. Claims over many rows hold together at 95 % (Holm), and the row that is shown because it
is the clearest has an interval that allows for the choice (Bonferroni; Benjamini & Yekutieli 2005, J. Am. Stat. Assoc.).
"""

from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd

from eqbench.columns import number
from eqbench.inference import Estimate, contrast, holm
from eqbench.leaderboard import KEYS, RANKINGS, Board
from eqbench.meanranks import mean_ranks
from eqbench.metrics import METRICS, SHARES
from eqbench.profiles import INDEX, maps
from eqbench.schema import UNGROUPED
from eqbench.stats import LEVEL, mean_interval
from eqbench.trajectories import When, when
from eqbench.wording import TOLD, between, count, listed, told

SHOWN = 4
FEWEST = 3  # networks that a claim about networks in general takes
TIMES = 3  # networks up to which each is told when it changed
ACROSS = "transverse_curvature"

Row = dict[Any, Any]


@dataclass(frozen=True)
class Finding:
    """A question and what a board answers.

    Attributes:
        supported: whether the data decide it. answer: in whole sentences, with interval and n.
        metric: the one that the answer is about, by its name in the glossary.
    """

    question: str
    supported: bool
    answer: str
    metric: str


def findings(board: Board) -> list[Finding]:
    """At most `SHOWN` of them; fewer where a board has no numbers for the others."""
    questions = (_emergence, _best, _when, _landscape, _depth)
    return list(islice((found for found in (ask(board) for ask in questions) if found), SHOWN))


def compared(board: Board) -> str:
    """What the board compares, in a sentence or two; says where nothing is measured yet."""
    cells = board.plan.cells
    models, groups = {cell.model for cell in cells}, {cell.group for cell in cells} - {UNGROUPED}
    families = {facts.get("family") for facts in board.facts.values()} - {None}
    images = board.table.groupby("data", sort=False)["n_images"].max()
    sets = [f"{data} ({n} images)" if pd.notna(n) else str(data) for data, n in images.items()]
    among = f" of {count(len(families), 'family', 'families')}" if len(families) > 1 else ""
    seeds, states = len({cell.seed for cell in cells}), {cell.state for cell in cells}
    beside = ", each beside the same architecture untrained" if states >= {"init", "final"} else ""
    saved = states - {"init", "final"}
    beside += f" and in up to {count(len(saved), 'state')} between" if saved else ""
    text = f"{count(len(models), 'network')}{among}, under {count(len(groups), 'group')} of transformations, on {listed(sets)}"
    text += f", with up to {seeds} seeds" * (seeds > 1) + beside + "."
    if not board.counts["ok"]:
        return f"To be compared: {text} Nothing of it is measured yet, so there is nothing to find."
    missing = len(cells) - board.counts["ok"]
    return f"Compared: {text}" + f" {missing} of {len(cells)} planned cells have no numbers." * (missing > 0)


def _emergence(board: Board) -> Finding | None:
    """Trained against untrained, in every row that has both."""
    question = "Did training make these networks more equivariant?"
    rows = [row for row in _rows(board) if pd.notna(row.get(f"{row['ranked_by']}_emergence_holm"))]
    if not rows:
        return None
    gain = [_signed(row, f"{row['ranked_by']}_emergence") for row in rows]
    sure = [row[f"{row['ranked_by']}_emergence_holm"] < 1 - LEVEL for row in rows]
    better = [row for row, up, holds in zip(rows, gain, sure, strict=True) if holds and up > 0]
    worse = sum(holds and up < 0 for up, holds in zip(gain, sure, strict=True))
    name = Counter(row["ranked_by"] for row in better or rows).most_common(1)[0][0]
    tests = f"{count(len(rows), 'comparison')} (one network under one group, trained against untrained)"
    if not better and not worse:
        least, most = (f(row[f"{name}_emergence"] for row in rows if row["ranked_by"] == name) for f in (min, max))
        said = f"Of {tests}, none shows a change that could not be chance; {METRICS[name].title} changed by {number(least)} to {number(most)}."
        standing = list(dict.fromkeys(map(_standing, rows)))
        return Finding(question, False, f"{said} Measured on {listed(standing)}.", name)
    counts = {"became more equivariant": len(better), "became less so": worse}
    answer = f"Of {tests}, {told(counts, len(rows))}."
    if better:
        top = max(
            (row for row in better if row["ranked_by"] == name), key=lambda row: _signed(row, f"{name}_emergence")
        )
        change = board.seeds.change(_key(top), name)
        assert change, "it has a p-value"
        answer += f" The largest: {_where(top)}, {METRICS[name].title} from {number(top[f'{name}_init'])} to {number(top[name])}, a change of {_bounded(change, len(rows))}; {_standing(top)}."
    return Finding(question, bool(better) or bool(worse), answer, name)


def _best(board: Board) -> Finding | None:
    """The network whose rank 1 is its own under most groups."""
    question = "Which network is the most equivariant?"
    table = board.table
    measured = [row for row in _rows(board) if pd.notna(row.get(row["ranked_by"]))]
    if not measured:
        return None
    ranked = [row for row in measured if pd.notna(row["rank"])]
    if not ranked:
        answer = "Nothing to compare: under no group do two networks have a rank on the same images."
        return Finding(question, False, answer, measured[0]["ranked_by"])
    name = Counter(row["ranked_by"] for row in ranked).most_common(1)[0][0]
    boards = {(row["data"], row["group"]) for row in ranked}
    wins: dict[tuple[str, str], list[Row]] = {}
    for row in ranked:
        if row["rank"] == row["rank_worst"] == 1:
            wins.setdefault((row["model"], row["data"]), []).append(row)
    if not wins:
        least = np.nanmedian([row["detectable"] for row in ranked if row["ranked_by"] == name])
        answer = (
            f"Under none of {count(len(boards), 'group')} does the interval of one network lie apart from all others'. "
            f"{METRICS[name].title}: with {_standing(ranked[0])}, a true difference of {number(least)} is found in four of five comparisons, smaller ones less often."
        )
        return Finding(question, False, answer, name)
    (model, data), own = max(wins.items(), key=lambda item: len(item[1]))
    first = own[0]
    name = first["ranked_by"]
    others = [row for row in ranked if (row["data"], row["group"]) == (data, first["group"]) and row["model"] != model]
    groups = len({group for where, group in boards if where == data})
    answer = f"{model} on {data}: under {len(own)} of {count(groups, 'group')} ({listed([row['group'] for row in own])}) its whole interval is better than that of each other network."
    next_best = max(others, key=lambda row: _signed(row, name))
    answer += f" Under {first['group']}: {METRICS[name].title} {_interval(first, name)}, next {next_best['model']} with {_interval(next_best, name)}; {_standing(first)}."
    for over in mean_ranks(table):
        if over.data == data and over.metric == name and model in over.ranks:
            beaten = [other for other in over.ranks if over.apart(model, other)]
            p = f"= {number(over.p)}" if over.p >= 0.001 else "< 0.001"
            answer += f" Its mean rank over {len(over.groups)} groups is {over.ranks[model]:.3g} of {len(over.ranks)} (Friedman p {p}), which differs from that of {listed(beaten) or 'no other'} beyond the critical difference."
    return Finding(question, True, answer, name)


def _when(board: Board) -> Finding | None:
    """The epoch at which each network's symmetry share was half way, over its seeds."""
    question = "When during training did these networks gain or lose symmetry?"
    found, silent = when(board)
    if not found and not silent:
        return None
    sure = [one for one in found if one.known]
    names = list(dict.fromkeys(one.metric for one in sure or found)) or [SHARES[0]]
    if sure:
        shown = sure if len(sure) <= TIMES else [sure[0], sure[-1]]  # the first and the last
        made = {name: "; ".join(_half(one) for one in shown if one.metric == name) for name in names}
        said = [f"of the {METRICS[name].title} was made {times}" for name, times in made.items() if times]
        answer = f"Half of the final change {'; '.join(said)}"
        answer += f"; in {len(sure) - 2} more, between these." if len(sure) > TIMES else "."
    else:
        answer = f"When half of the final change of the {listed(METRICS[name].title for name in names)} was made"
        answer += " cannot be told: that takes two seeds whose share changed, and times that lie together."
    unsaid = silent + [f"{one.model} on {one.data}" for one in found if not one.known]
    rest = listed(unsaid) if len(unsaid) <= TOLD else count(len(unsaid), "network")
    more = f" Nothing can be said of {rest}." if unsaid else ""
    measured = dict.fromkeys(f"{count(one.images, 'image')}, {count(one.seeds, 'seed')}" for one in sure)
    epochs = f" Measured on {listed(measured)}; between saved epochs it is interpolated." if sure else ""
    return Finding(question, bool(sure), answer + epochs + more, names[0])


def _half(one: When) -> str:
    """`by epoch 2.3 [1.2, 4.1] of 30 in vit_digits under d4`."""
    at = between(one.epoch, one.lo, one.hi)
    return f"by epoch {at} of {one.last} in {one.model} on {one.data} under {listed(one.groups)}"


def _landscape(board: Board) -> Finding | None:
    """Whether the loss rises or falls on the way from the symmetrised weights to those that training found."""
    question = "Is symmetry of the weights stable in the loss landscape?"
    rows = [row for row in _rows(board) if pd.notna(row[ACROSS])]
    found = [(row, contrast((1.0, own))) for row in rows if (own := board.seeds.sample(_key(row), ACROSS))]
    if not found:
        return None
    sure = [(row, one) for (row, one), p in zip(found, holm([one.p for _, one in found]), strict=True) if p < 1 - LEVEL]
    above = sum(one.value > 0 for _, one in sure)
    row, one = min(found, key=lambda pair: pair[1].p)
    n = board.seeds.over(_key(row), ACROSS, "final").n
    clearest = f"{_where(row)}, {METRICS[ACROSS].title} {_bounded(one, len(found))}; {count(n or 0, 'image')}, {count(int(row['n_seeds']), 'seed')}."
    counts = {
        "curved up across the symmetric weights, so that leaving them costs loss": above,
        "curved down there, so that training breaks the symmetry": len(sure) - above,
    }
    surfaces = f"{count(len(found), 'loss surface')} (one trained network under one group)"
    answer = f"Of {surfaces}, {told(counts, len(found))}. The clearest: {clearest}"
    return Finding(question, bool(sure), answer, ACROSS)


def _depth(board: Board) -> Finding | None:
    """The later half of the layers against the earlier half, a difference a network, over networks."""
    question = "Where in the networks did training bring equivariance about?"
    layers = maps(board.layers[board.layers["metric"] == INDEX]).dropna(subset=["value"])
    if layers.empty:
        return None
    halves = layers.assign(late=layers["depth"] > 0.5).groupby(["model", "data", "group", "late"])["value"].mean()
    by = halves.unstack("late").reindex(columns=[False, True]).dropna().groupby(["model", "data"]).mean()
    if len(by) < FEWEST:
        answer = f"{count(len(by), 'network')} with layers in both halves cannot speak for networks in general: {FEWEST} are the least."
        return Finding(question, False, answer, INDEX)
    value, lo, hi = mean_interval((by[True] - by[False]).to_numpy(float))
    early, late = (number(by[half].mean()) for half in (False, True))
    text = f"Emergence index of the layers in the later half minus the earlier half ({late} against {early}): {between(value, lo, hi)}, over {len(by)} networks as a sample of networks, each the mean over its groups"
    if lo <= 0 <= hi:
        return Finding(question, False, f"{text}: neither half gained more for certain.", INDEX)
    return Finding(question, True, f"{text}: more in the {'later' if lo > 0 else 'earlier'} half.", INDEX)


def _rows(board: Board) -> list[Row]:
    """The rows of the wide table, with the columns that answers are made of: the others are many."""
    ends = ("", "_lo", "_hi", "_init", "_emergence", "_emergence_holm")
    asked = [f"{metric.name}{end}" for metric in RANKINGS for end in ends]
    return board.table[[*KEYS, *asked, ACROSS]].to_dict("records")


def _signed(row: Row, key: str) -> float:
    """A number of a row, larger where it is better."""
    return float(row[key]) if METRICS[row["ranked_by"]].higher_is_better else -float(row[key])


def _key(row: Row) -> tuple[str, str, str]:
    return row["model"], row["data"], row["group"]


def _where(row: Row) -> str:
    return f"{row['model']} under {row['group']} on {row['data']}"


def _standing(row: Row) -> str:
    """`256 images, 2 seeds (3 untrained)`."""
    seeds, init = int(row["n_seeds"]), int(row["n_init_seeds"])
    return f"{count(int(row['n_images']), 'image')}, {count(seeds, 'seed')}" + f" ({init} untrained)" * (init != seeds)


def _bounded(found: Estimate, among: int) -> str:
    return between(found.value, *found.among(among))


def _interval(row: Row, name: str) -> str:
    return between(row[name], row[f"{name}_lo"], row[f"{name}_hi"])
