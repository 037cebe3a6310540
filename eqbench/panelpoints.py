"""A board's networks as points: how symmetric each is, beside each outcome of it (no torch)."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from eqbench.lineage import BUILT, IDLE
from eqbench.metrics import ACCURACY, METRICS, SHARES
from eqbench.options import digest
from eqbench.results import Status
from eqbench.schema import UNGROUPED

if TYPE_CHECKING:
    from eqbench.leaderboard import Board

CORRUPTED = ("shift_accuracy", "rotation_accuracy", "noise_medium_accuracy", "pgd_weak_accuracy", "pgd_strong_accuracy")
OUTCOMES = (ACCURACY, *CORRUPTED, "lambda_max", "adaptive_sharpness")
LESS = "accuracy_of_"  # stands before the percent of the images that a network was trained on
BETWEEN, OVER = "between networks", "over training"
STATES = 3  # that a panel over training takes

Numbers = dict[tuple[str, str], dict[str, float]]  # (metric, group) -> seed -> its value, NaN where there is none
Seeds = dict[str, tuple[float, float, float]]  # seed -> its share, outcome and accuracy


class Question(NamedTuple):
    """What is correlated with which symmetry, under which group, on which images, and between networks or over training."""

    data: str
    scope: str
    group: str
    symmetry: str
    outcome: str


@dataclass(frozen=True)
class Point:
    """A network in one state: its symmetry beside one outcome.

    Attributes:
        source: what made its weights; points of one source are not independent.
        share, outcome, accuracy: the numbers, means over the seeds that have them all, in a panel in each of its states;
            accuracy is NaN where there is none.
    """

    model: str
    state: str
    source: str
    share: float
    outcome: float
    accuracy: float


def points(board: "Board") -> dict[Question, list[Point]]:
    """The points of every question that the board has any for, in the order of data sets, scopes, groups and `OUTCOMES`.

    Of networks whose recipes differ in `fraction` alone only those trained on most images are points; the accuracy of the
    others is an outcome of theirs.
    """
    networks = _networks(board)
    made = {model: _made(board, model) for _, model in networks}
    most = {source: max(share for own, share in made.values() if own == source) for source, _ in made.values()}
    found: dict[Question, list[Point]] = {}
    for data in dict.fromkeys(data for data, _ in networks):
        own = {model: states for (where, model), states in networks.items() if where == data}
        whole = {model: states for model, states in own.items() if made[model][1] == most[made[model][0]]}
        final = {model: {"final": states["final"]} for model, states in whole.items() if "final" in states}
        known = {key for states in own.values() for numbers in states.values() for key in numbers}
        symmetry = next((name for name in SHARES if any(name == metric for metric, _ in known)), "")
        groups = [
            group for group in dict.fromkeys(cell.group for cell in board.plan.cells) if (symmetry, group) in known
        ]
        for scope, asked_of in ((BETWEEN, final), (OVER, whole)):
            for group in groups:
                for outcome in OUTCOMES:
                    asked = Question(data, scope, group, symmetry, outcome)
                    seeds = {
                        model: {state: _seeds(numbers, numbers, asked) for state, numbers in states.items()}
                        for model, states in asked_of.items()
                    }
                    seeds = _panel(seeds) if scope == OVER else seeds
                    found[asked] = [point for model in seeds for point in _points(model, made[model][0], seeds[model])]
        for group in groups:
            for percent, pairs in _less(board, own, made, most).items():
                asked = Question(data, BETWEEN, group, symmetry, ACCURACY)
                found[asked._replace(outcome=f"{LESS}{percent}")] = [
                    point
                    for model, less in pairs
                    for point in _points(
                        model, made[model][0], {"final": _seeds(whole[model].get("final", {}), less, asked)}
                    )
                ]
    return {asked: own for asked, own in found.items() if own}


def _networks(board: "Board") -> dict[tuple[str, str], dict[str, Numbers]]:
    """(data, model) -> state -> its numbers; untrained states are left out."""
    asked = {*SHARES, *OUTCOMES}
    found: dict[tuple[str, str], dict[str, Numbers]] = {}
    for cell in board.plan.cells:
        result = board.results.get(cell)
        if result is None or result.status is not Status.ok or cell.state == "init":
            continue
        states = found.setdefault((board.plan.data(cell), cell.model), {})
        for name in asked & result.metrics.keys():
            if METRICS[name].probe == cell.probe:
                value = result.metrics[name].value
                seeds = states.setdefault(cell.state, {}).setdefault((name, cell.group), {})
                seeds[cell.seed] = math.nan if value is None else value
    return found


def _made(board: "Board", model: str) -> tuple[str, float]:
    """What made a model's weights, whatever the share of the images, and that share. What is made of a model is the same.

    The recipe is the one that cells recorded: a model made of another has that one's, which may itself not be measured.
    """
    conf, recipe = board.plan.plain("model", model), board.facts.get(model, {}).get("recipe")
    while conf.get("of"):
        model, conf = conf["of"], board.plan.plain("model", conf["of"])
        recipe = board.facts.get(model, {}).get("recipe") or recipe
    recipe = recipe or {}
    rest = {key: value for key, value in recipe.items() if key not in (*IDLE, "fraction")}
    built = {key: conf.get(key) for key in (*BUILT, "path", "package")}
    return digest([built, rest]), float(recipe.get("fraction") or 1.0)


def _less(
    board: "Board", own: Mapping[str, dict[str, Numbers]], made: Mapping[str, tuple[str, float]], most: Mapping[str, float]
) -> dict[str, list[tuple[str, Numbers]]]:  # fmt: skip
    """Percent of the images -> the networks trained on most of them, with the numbers of the one trained on so many."""
    trained = {model: made[model] for model in own if not board.plan.plain("model", model).get("of")}
    found: dict[str, list[tuple[str, Numbers]]] = {}
    for model, (source, share) in sorted(trained.items(), key=lambda item: (item[1][1], item[0])):
        if share < most[source]:
            whole = [other for other, key in trained.items() if key == (source, most[source])]
            numbers = own[model].get("final", {})
            found.setdefault(f"{100 * share:g}", []).extend((other, numbers) for other in whole)
    return found


def _seeds(numbers: Numbers, outcomes: Numbers, asked: Question) -> Seeds:
    """The seeds that have all numbers of a question, in one state; the outcome may be another network's.

    None, where one of them could not be measured on: it is not averaged away.
    """

    def of(found: Numbers, name: str) -> dict[str, float]:
        return found.get((name, asked.group), found.get((name, UNGROUPED), {}))

    share, outcome, accuracy = of(numbers, asked.symmetry), of(outcomes, asked.outcome), of(numbers, ACCURACY)
    common = share.keys() & outcome.keys() & (accuracy or share).keys()
    if any(math.isnan(own[seed]) for own in (share, outcome, accuracy) for seed in common & own.keys()):
        return {}
    return {seed: (share[seed], outcome[seed], accuracy.get(seed, math.nan)) for seed in sorted(common)}


def _panel(networks: Mapping[str, dict[str, Seeds]]) -> dict[str, dict[str, Seeds]]:
    """The networks that have all the states which most of those with several have; none, where these are too few.

    A panel with holes is none: what a network has beyond these states is left out, and so is one without them.
    """
    several = {
        model: own
        for model, states in networks.items()
        if len(own := {state: seeds for state, seeds in states.items() if seeds}) >= STATES
    }
    count = Counter(state for states in several.values() for state in states)
    shared = {state for state, times in count.items() if 2 * times > len(several)}
    return {
        model: {state: seeds for state, seeds in states.items() if state in shared}
        for model, states in several.items()
        if len(shared) >= STATES and shared <= states.keys()
    }


def _points(model: str, source: str, states: Mapping[str, Seeds]) -> list[Point]:
    """A network's points, a state each, over the seeds that all of its states have."""
    common = sorted(set.intersection(*(set(seeds) for seeds in states.values())))
    return [
        Point(model, state, source, *(sum(values) / len(common) for values in zip(*(seeds[s] for s in common), strict=True)))
        for state, seeds in states.items()
        if common
    ]  # fmt: skip
