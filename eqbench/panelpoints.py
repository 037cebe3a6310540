"""A board's networks as points: how symmetric each is, beside each outcome of it (no torch)."""

import math
from collections.abc import Mapping, Sequence
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

Numbers = dict[tuple[str, str], float]  # (metric, group) -> its mean over seeds


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
        share, outcome, accuracy: the numbers; accuracy is NaN where there is none.
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
        known = {key for states in own.values() for numbers in states.values() for key in numbers}
        symmetry = next((name for name in SHARES if any(name == metric for metric, _ in known)), "")
        groups = [
            group for group in dict.fromkeys(cell.group for cell in board.plan.cells) if (symmetry, group) in known
        ]
        for scope, panel in ((BETWEEN, _final(whole)), (OVER, _panel(whole))):
            for group in groups:
                for outcome in OUTCOMES:
                    asked = Question(data, scope, group, symmetry, outcome)
                    found[asked] = [
                        point for at, numbers in panel.items() for point in _point(at, made, numbers, numbers, asked)
                    ]
        for group in groups:
            for percent, pairs in _less(board, own, made, most).items():
                asked = Question(data, BETWEEN, group, symmetry, ACCURACY)
                found[asked._replace(outcome=f"{LESS}{percent}")] = [
                    point
                    for model, less in pairs
                    for point in _point((model, "final"), made, whole[model].get("final", {}), less, asked)
                ]
    return {asked: complete(own) for asked, own in found.items() if own}


def complete(own: Sequence[Point]) -> list[Point]:
    """Those of networks that have all states which any of them has: a panel with holes is none."""
    states = {point.state for point in own}
    count = {model: sum(point.model == model for point in own) for model in {point.model for point in own}}
    return [point for point in own if count[point.model] == len(states)]


def _networks(board: "Board") -> dict[tuple[str, str], dict[str, Numbers]]:
    """(data, model) -> state -> its numbers; what a seed could not be measured on is left out, and so are untrained states."""
    asked = {*SHARES, *OUTCOMES}
    values: dict[tuple[str, str], dict[str, dict[tuple[str, str], list[float | None]]]] = {}
    for cell in board.plan.cells:
        result = board.results.get(cell)
        if result is None or result.status is not Status.ok or cell.state == "init":
            continue
        states = values.setdefault((board.plan.data(cell), cell.model), {})
        for name in asked & result.metrics.keys():
            if METRICS[name].probe == cell.probe:
                numbers = states.setdefault(cell.state, {})
                numbers.setdefault((name, cell.group), []).append(result.metrics[name].value)
    return {
        network: {state: {key: mean for key, own in numbers.items() if (mean := _mean(own)) is not None}
                  for state, numbers in states.items()}
        for network, states in values.items()
    }  # fmt: skip


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _made(board: "Board", model: str) -> tuple[str, float]:
    """What made a model's weights, whatever the share of the images, and that share. What is made of a model is the same."""
    conf = board.plan.plain("model", model)
    while conf.get("of"):
        model, conf = conf["of"], board.plan.plain("model", conf["of"])
    recipe = board.facts.get(model, {}).get("recipe") or {}
    rest = {key: value for key, value in recipe.items() if key not in (*IDLE, "fraction")}
    built = {key: conf.get(key) for key in (*BUILT, "path", "package")}
    return digest([built, rest]), float(recipe.get("fraction") or 1.0)


def _final(whole: Mapping[str, dict[str, Numbers]]) -> dict[tuple[str, str], Numbers]:
    return {(model, "final"): states["final"] for model, states in whole.items() if "final" in states}


def _panel(whole: Mapping[str, dict[str, Numbers]]) -> dict[tuple[str, str], Numbers]:
    """The states that all networks with several have; none, if these are too few."""
    several = {model: states for model, states in whole.items() if len(states) >= STATES}
    shared = [state for state in next(iter(several.values()), {}) if all(state in own for own in several.values())]
    return {(model, state): own[state] for model, own in several.items() for state in shared if len(shared) >= STATES}


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


def _point(
    at: tuple[str, str], made: Mapping[str, tuple[str, float]], numbers: Numbers, outcomes: Numbers, asked: Question
) -> list[Point]:
    """The point of a network in one state, with an outcome that may be another's; none, where a number is missing."""

    def of(found: Numbers, name: str) -> float:
        return found.get((name, asked.group), found.get((name, UNGROUPED), math.nan))

    point = Point(*at, made[at[0]][0], of(numbers, asked.symmetry), of(outcomes, asked.outcome), of(numbers, ACCURACY))
    return [] if math.isnan(point.share) or math.isnan(point.outcome) else [point]
