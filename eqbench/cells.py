"""The cells of a plan as they lie on disk: done, failed, skipped, stale, or not run (no torch)."""

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from eqbench.config import Cell, Plan
from eqbench.errors import UserError
from eqbench.results import Result, Status, read, tidy

MISSING, STALE = "not run", "stale"
STATUSES = ("ok", "failed", STALE, "skipped", MISSING)


@dataclass(frozen=True)
class Cells:
    """A plan and what became of its cells.

    Attributes:
        results: the files that answer the plan (ok, skipped, failed; an unreadable file is failed).
        stale: the files that answer another question than the plan asks now, with what changed; their numbers are out.
    """

    plan: Plan
    results: dict[Cell, Result]
    stale: dict[Cell, str]

    def status(self, cell: Cell) -> str:
        return STALE if cell in self.stale else str(self.results[cell].status) if cell in self.results else MISSING

    def reason(self, cell: Cell) -> str:
        return self.stale.get(cell) or (self.results[cell].reason if cell in self.results else None) or ""

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many cells have each status."""
        found = [self.status(cell) for cell in self.plan.cells]
        return {status: found.count(status) for status in STATUSES}

    @cached_property
    def tidy(self) -> pd.DataFrame:
        """A row a cell x layer x metric (columns: `results.COLUMNS`); a cell that is not run is not in it."""
        stale = [Result(names(self.plan, cell), reason=reason) for cell, reason in self.stale.items()]
        frames = [tidy(self.results.values()), tidy(stale).assign(status=STALE)]
        return pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)

    @cached_property
    def facts(self) -> dict[str, dict[str, Any]]:
        """Per model: what its cells recorded of it (the final state of s0 first), else its configuration.

        `sha256` maps "<seed> <state>" to the hash of those weights.
        """
        facts: dict[str, dict[str, Any]] = {cell.model: {"sha256": {}} for cell in self.plan.cells}
        order = sorted(self.results, key=lambda cell: (cell.state != "final", cell))
        for cell in order:
            known = {key: value for key, value in self.results[cell].provenance.items() if value is not None}
            facts[cell.model] = known | facts[cell.model]
            if known.get("weights"):
                facts[cell.model]["sha256"].setdefault(f"{cell.seed} {cell.state}", str(known["weights"]))
        for model, found in facts.items():
            conf = self.plan.plain("model", model)
            asked = {"architecture": conf["timm"]} | {key: conf[key] for key in ("source", "licence", "image_size")}
            facts[model] = {key: value for key, value in asked.items() if value is not None} | found
        return facts


def read_cells(plan: Plan, folder: Path) -> Cells:
    """The plan's cells that exist below `folder`; files there that the plan does not name are not looked at."""
    collecting = gc.isenabled()
    gc.disable()  # a million objects and no cycle: looking for one takes a third of the time
    try:
        return _read_cells(plan, folder)
    finally:
        if collecting:
            gc.enable()


def _read_cells(plan: Plan, folder: Path) -> Cells:
    results: dict[Cell, Result] = {}
    stale: dict[Cell, str] = {}
    for cell in plan.cells:
        path = folder / cell.path
        if not path.exists():
            continue
        asked = plan.config(cell)
        try:
            result = read(path)
            if result.cell != names(plan, cell):
                raise UserError(f"{path}: holds another cell ({result.cell}): run its probe again, and it is replaced")
        except UserError as error:
            result = Result(names(plan, cell), Status.failed, str(error), config=asked)
        if result.config == asked:
            result.config = asked  # its parts are shared by all cells, those of the file by none
            results[cell] = result
        else:
            changed = list(_changes("", result.config, asked))
            stale[cell] = "configuration changed: " + ", ".join(changed[:3]) + (", ..." if len(changed) > 3 else "")
    for cell, reason in _on_old_weights(results):
        stale[cell] = reason
        del results[cell]
    return Cells(plan, results, stale)


def names(plan: Plan, cell: Cell) -> dict[str, str]:
    """The cell as a result file names it."""
    keys = ("suite", "model", "seed", "state", "group", "probe")
    return {key: str(getattr(cell, key)) for key in keys} | {"data": plan.data(cell)}


def _changes(where: str, old: Any, new: Any) -> Iterator[str]:
    """`probe.images 16 → 32`, for each leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _changes(f"{where}.{key}" if where else key, old.get(key), new.get(key))
    elif old != new:
        yield f"{where} {old} → {new}"


def _on_old_weights(results: dict[Cell, Result]) -> list[tuple[Cell, str]]:
    """Cells of a model trained again since: only those of the newest weights of a (model, seed, state) are its numbers."""
    newest: dict[tuple[str, str, str], tuple[str, str]] = {}
    made = {
        cell: (str(result.provenance.get("started")), str(result.provenance["weights"]))
        for cell, result in results.items()
        if result.provenance.get("weights")
    }
    for cell, when in made.items():
        key = (cell.model, cell.seed, cell.state)
        newest[key] = max(newest.get(key, when), when)
    return [
        (cell, f"measured on weights {weights[:12]}, older than those of its model's newest cells")
        for cell, (_, weights) in made.items()
        if weights != newest[cell.model, cell.seed, cell.state][1]
    ]
