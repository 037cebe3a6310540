"""The commands that measure a suite's cells anew in a clone of the project (no torch)."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from eqbench.config import Cell, Plan
from eqbench.options import parse_overrides


@dataclass(frozen=True)
class Recipe:
    """How the cells of one (seed, state) of a model are made.

    Parts of a job a group or a cell stand in braces, which bash and zsh expand.

    Attributes:
        weights: brings the weights that they read. probe: measures them. snakemake: both, and reruns nothing that is done.
    """

    seed: str
    state: str
    weights: tuple[str, ...]
    probe: str
    snakemake: str


def recipes(plan: Plan, model: str, cells: Sequence[Cell]) -> list[Recipe]:
    """The commands for all cells of a model, a recipe a (seed, state), in the plan's order."""
    runs: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        runs.setdefault((cell.seed, cell.state), []).append(cell)
    found = []
    for (seed, state), own in runs.items():
        cards = plan.cards(own)
        cards = list(dict.fromkeys([*(member for card in cards for member in plan.members(*card)), *cards]))
        suite = f"suite={plan.name}"
        weights = tuple(_eqbench(plan, plan.verb(name), suite, f"model={name}", f"seed={of}") for name, of in cards)
        where = (suite, f"model={model}", f"seed={seed}", f"state={state}")
        at, parts = plan.part(own[0])[2], list(dict.fromkeys(plan.part(cell)[3] for cell in own))
        target = shlex.quote(f"data/parts/{plan.name}/{model}/{seed}/{at}/")  # ids need no quotes: a brace may follow
        target += f"{parts[0] if len(parts) == 1 else '{' + ','.join(parts) + '}'}.json"
        found.append(Recipe(seed, state, weights, _eqbench(plan, "probe", *where), _snakemake(plan, target)))
    return found


def probe(plan: Plan, cell: Cell) -> str:
    """The command for one cell alone; it keeps a result that is still true."""
    where = (f"suite={plan.name}", f"model={cell.model}", f"seed={cell.seed}", f"state={cell.state}")
    return _eqbench(plan, "probe", *where, f"part={cell.group}+{cell.probe}")


def _eqbench(plan: Plan, verb: str, *arguments: str) -> str:
    return shlex.join(["python", "-m", "eqbench", verb, *arguments, *given(plan)])


def _snakemake(plan: Plan, target: str) -> str:
    overrides = [f"overrides={json.dumps(given(plan), ensure_ascii=False)}"] if given(plan) else []
    return (
        shlex.join(["snakemake", "--cores", "all", "--config", f"suite={plan.name}", *overrides, "--"]) + f" {target}"
    )


def given(plan: Plan) -> list[str]:
    """The overrides of the command line: those that the suite has of its own need no repetition."""
    own = len(parse_overrides(plan.option("suite", plan.name).overrides)) if plan.overrides else 0
    return plan.arguments[own:]
