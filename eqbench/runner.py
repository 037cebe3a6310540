"""The job that runs one part: keeps the cells that are still true, measures the others, writes each whole as it is done.

Nothing here imports torch until a cell has to be measured.
"""

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from tqdm import tqdm

from eqbench import results, running
from eqbench.config import Cell, Plan
from eqbench.errors import UserError
from eqbench.measuring import Images, State
from eqbench.results import Result, Status
from eqbench.schema import ALL


def select(plan: Plan, model: str, seed: str, state: str, part: str) -> list[Cell]:
    """The cells of one (model, seed, state), or of `all` its states, that `part` names: `all`, `<group>`, or `<group>+<probe>`.

    Raises:
        UserError: the suite has no such cells; says which parts there are.
    """
    run = sorted(c for c in plan.cells if (c.model, c.seed) == (model, seed) and state in (c.state, ALL))
    if not run:
        own = sorted({f"{c.seed} {c.state}" for c in plan.cells if c.model == model})
        there = f"of this model it has {', '.join(own)}" if own else f"its models are {', '.join(plan.models)}"
        raise UserError(f"suite '{plan.name}' has no cells of model={model} seed={seed} state={state}: {there}")
    parts = {ALL: list(run)}
    for cell in run:
        parts.setdefault(cell.group, []).append(cell)
        parts.setdefault(f"{cell.group}+{cell.probe}", []).append(cell)
    if part not in parts:
        raise UserError(f"unknown part '{part}' of {model} {seed} {state}: it has {', '.join(sorted(parts))}")
    return parts[part]


def run(
    plan: Plan, cells: Sequence[Cell], weights_root: Path, cells_root: Path, parts: Path, state: str, part: str | None
) -> dict[str, int]:
    """Bring cells of one (model, seed) up to date, one state after the other, then write the manifest of their part.

    A cell is kept if its file carries the digest of what is asked now and did not fail. A cell that fails costs itself
    alone: it becomes a row with its reason. Anything unforeseen is a bug and ends the job with a traceback; the cells
    written before it stay. Manifests of other parts that list a cell which is now another are removed, so that whoever
    asks for those parts looks again.

    Args:
        parts: the folder of the manifests of this (model, seed). state: whose cells they are, or `all`.
        part: which manifest to write; None: none, for runs outside the workflow.

    Returns:
        How many cells were kept, ok, skipped and failed.

    Raises:
        UserError: the weights or the images cannot be read.
    """
    images = Images(plan, cells)
    counts = {"kept": 0} | dict.fromkeys(map(str, Status), 0)
    listed: dict[str, dict[str, str]] = {}
    about = f"{cells[0].model} {cells[0].seed} {state}"
    bar = tqdm(total=len(cells), desc=about, unit="cell", disable=None)
    with running.noted(running.note_path(parts / state, part or ALL), len(cells)) as tell, bar:
        for where, own in groupby(cells, lambda cell: (cell.model, cell.seed, cell.state)):
            measured = State(images, where, weights_root)
            for cell in own:
                path = cells_root / cell.path
                identity = measured.identity(cell)
                stored = _stored(path)
                if stored is not None and stored.digest == identity and stored.status is not Status.failed:
                    counts["kept"] += 1
                else:
                    tell(str(cell), len(listed))
                    stored = measured.measure(cell, identity)
                    results.write(stored, path)
                    counts[str(stored.status)] += 1
                listed[str(cell)] = {"digest": identity, "status": str(stored.status)}
                bar.update()
    for folder in parts.glob("*") if state == ALL else (parts / state, parts / ALL):
        for path in folder.glob("[!.]*.json"):
            if not _vouches(path, listed):
                path.unlink(missing_ok=True)
    if part is not None:
        results.write_json(parts / state / f"{part}.json", listed)
    return counts


def _vouches(manifest: Path, listed: dict[str, dict[str, str]]) -> bool:
    """Whether a manifest says of these cells, if it names them, what is true."""
    try:
        known = results.read_json(manifest)
    except (OSError, ValueError):
        return False
    return all(known.get(cell, entry) == entry for cell, entry in listed.items())


def _stored(path: Path) -> Result | None:
    """The result at this path; None if there is none that can be read: it is then written anew."""
    try:
        return results.read(path) if path.exists() else None
    except UserError as error:
        print(f"eqbench: {error}", file=sys.stderr)
        return None
