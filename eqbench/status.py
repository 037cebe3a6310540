"""Where a suite stands: its cells done, running, failed and why, and the time that the rest will take (no torch)."""

from collections.abc import Iterator
from pathlib import Path
from time import time

from eqbench.cells import MISSING, STALE, Cells
from eqbench.config import Cell
from eqbench.forecast import Forecast, duration
from eqbench.results import Status
from eqbench.running import Note
from eqbench.weights import card_path

SHOWN = 10  # lines of a list
WIDTH = 200  # characters of a line of it
RUNNING = "running"
WORDS = {"measured": "their last measurement", "alike": "cells of the same model and probe", "law": "the law of costs"}


def status_text(cells: Cells, notes: dict[Path, Note], weights: Path, now: float | None = None) -> Iterator[str]:
    """The lines of `python -m eqbench status`.

    Args:
        notes: of the suite's jobs that live.
    """
    plan, now = cells.plan, now or time()
    at_work = {note.cell for note in notes.values()}
    states = {cell: RUNNING if str(cell) in at_work else cells.status(cell) for cell in plan.cells}
    done = sum(states[cell] in (Status.ok, Status.skipped, Status.failed) for cell in states)
    yield f"suite {plan.name}: {done} of {len(states)} cells done ({100 * done / len(states):.0f} %)"
    for name in (Status.ok, Status.skipped, Status.failed, RUNNING, STALE, MISSING):
        count = list(states.values()).count(str(name))
        if count:
            yield f"  {name:8} {count}"
    if notes:
        yield f"running: {len(notes)} {'jobs' if len(notes) > 1 else 'job'}"
        told = [
            f"{note.cell}, {note.done} of {note.of} cells before it, for {duration(now - note.started)} on {note.host}"
            + (f", job {note.job}" if note.job else f", process {note.pid}")
            for note in sorted(notes.values(), key=lambda note: note.started)
        ]
        yield from _some(told)
    for name in (Status.failed, STALE, Status.skipped):
        reasons: dict[str, list[Cell]] = {}
        for cell in plan.cells:
            if states[cell] == name:
                reasons.setdefault(cells.reason(cell), []).append(cell)
        if reasons:
            yield f"{name}:"
        ordered = sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0]))
        yield from _some([f"{len(own)} × {own[0]}: {reason}" for reason, own in ordered])
    yield from _left(cells, states, notes, weights)


def _left(cells: Cells, states: dict[Cell, str], notes: dict[Path, Note], weights: Path) -> Iterator[str]:
    """What is left to do, and how long it takes."""
    todo = [cell for cell, state in states.items() if state in (RUNNING, STALE, MISSING)]
    if not todo:
        yield "nothing is left to measure"
        return
    forecast = Forecast(cells, weights)
    expected = [forecast.expected[cell] for cell in todo]
    work, known = sum(one.seconds for one in expected), [one.known for one in expected]
    how = ", ".join(f"{known.count(name)} by {word}" for name, word in WORDS.items() if name in known)
    yield f"left: {len(todo)} cells, {duration(work)} of work on one {forecast.device} ({how})"
    missing = sorted({(c.model, c.seed) for c in todo if not card_path(weights, c.model, c.seed).exists()})
    if missing:
        yield f"  and the weights of {len(missing)} (model, seed), which come first: {' '.join(missing[0])}" + (
            ", ..." if len(missing) > 1 else ""
        )
    if notes:
        longest = max(one.seconds for one in expected)
        yield f"  at {len(notes)} at once: {duration(max(work / len(notes), longest))}"


def _some(lines: list[str]) -> Iterator[str]:
    yield from (f"  {line if len(line) <= WIDTH else line[: WIDTH - 1] + '…'}" for line in lines[:SHOWN])
    if len(lines) > SHOWN:
        yield f"  and {len(lines) - SHOWN} more"
