"""What cells recorded of their network's training: the epochs of its states, and how it was told of symmetry (no torch)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eqbench.cells import Cells
from eqbench.options import digest
from eqbench.results import Result, Status
from eqbench.schema import STATE, UNGROUPED

PLAIN = "plain"
TREATMENT = ("augment", "penalty")  # keys of a recipe that tell of symmetry
IDLE = ("save", "dynamics", "test_images")  # keys that decide no weights
BUILT = (
    "timm",
    "source",
    "args",
    "image_size",
    "members",
    "group",
    "how",
)  # keys of a model that decide its architecture


def epochs(cells: Cells) -> dict[str, dict[str, int]]:
    """Model -> its measured states as epochs, in order; models with a measured state between `init` and `final` alone.

    `init` is epoch 0 and `final` the last one of the recipe that the cells recorded; where that epoch was also saved by
    its number, `final` stands for both.
    """
    measured: dict[str, set[str]] = {}
    for cell, result in cells.results.items():
        if result.status is Status.ok:
            measured.setdefault(cell.model, set()).add(cell.state)
    found = {}
    for model, states in measured.items():
        last = (cells.facts[model].get("recipe") or {}).get("epochs")
        if not isinstance(last, int):
            continue
        numbers = {"init": 0, "final": last}
        numbers |= {state: int(match[1]) for state in states if (match := STATE.fullmatch(state)) and match[1]}
        own = {state: numbers[state] for state in states if state in ("init", "final") or numbers[state] < last}
        if own.keys() - {"init", "final"}:
            found[model] = dict(sorted(own.items(), key=lambda item: item[1]))
    return found


def place(epoch: float) -> float:
    """Where an epoch stands on the axis: states are saved at powers of 2, and the untrained network is at 0.

    >>> [place(epoch) for epoch in (0, 1, 3, 7)]
    [0.0, 1.0, 2.0, 3.0]
    """
    return math.log2(1 + epoch)


def treatment(recipe: Mapping[str, Any]) -> str:
    """What a recipe tells of symmetry, in words.

    >>> treatment({"augment": "d4", "penalty": {"form": "twirl", "group": "c4", "weight": 0.5}})
    'd4 + twirl c4 × 0.5'
    >>> treatment({"augment": "none", "penalty": None})
    'plain'
    """
    told = [str(recipe["augment"])] if recipe.get("augment") not in (None, UNGROUPED) else []
    penalty = recipe.get("penalty")
    if penalty:
        told.append(f"{penalty.get('form')} {penalty.get('group')} × {penalty.get('weight', 1):g}")
    return " + ".join(told) or PLAIN


def groups_of(recipe: Mapping[str, Any]) -> tuple[str, ...]:
    """The groups (ids of conf/group) that a recipe tells of."""
    named = [recipe.get("augment"), (recipe.get("penalty") or {}).get("group")]
    return tuple(dict.fromkeys(str(name) for name in named if name not in (None, UNGROUPED)))


@dataclass(frozen=True)
class Kind:
    """What a network is, and how it was treated.

    Attributes:
        architecture: of timm. built: a digest of what decides it. kin: of that and of the recipe but for its treatment.
    """

    architecture: str
    built: str
    kin: str
    treatment: str
    groups: tuple[str, ...]


def kinds(cells: Cells) -> dict[str, Kind]:
    """Model -> its kind, of models whose cells recorded a recipe."""
    first: dict[str, Result] = {}
    for cell, result in cells.results.items():
        if result.provenance.get("recipe"):
            first.setdefault(cell.model, result)
    found = {}
    for model, result in sorted(first.items()):
        recipe, conf = result.provenance["recipe"], result.config.get("model", {})
        built = {key: conf.get(key) for key in BUILT}
        rest = {key: value for key, value in recipe.items() if key not in IDLE + TREATMENT}
        name = str(result.provenance.get("architecture") or conf.get("timm"))
        found[model] = Kind(name, digest(built), digest([built, rest]), treatment(recipe), groups_of(recipe))
    return found
