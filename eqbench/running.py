"""Which jobs are measuring right now: a note beside the manifest of each, kept fresh while its process lives (no torch)."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from eqbench.locks import alive
from eqbench.results import write_text

BEAT, SILENT = 10.0, 60.0  # seconds between two signs of life; after which a job without any is taken for dead


@dataclass(frozen=True)
class Note:
    """What a job says of itself: the cell it measures, the `done` ones before it, where it runs and since when."""

    cell: str
    done: int
    of: int
    host: str
    pid: int
    job: str | None
    started: float


@contextmanager
def noted(path: Path, of: int) -> Iterator[Callable[[str, int], None]]:
    """Keep a note at `path` while the block runs, and give the function that tells it the cell and how many are done.

    A note is for people: a full or read-only disk costs the note alone.
    """
    own = (of, socket.gethostname(), os.getpid(), os.environ.get("SLURM_JOB_ID"), time.time())
    ended = threading.Event()

    def tell(cell: str, done: int) -> None:
        with suppress(OSError):
            write_text(path, json.dumps(asdict(Note(cell, done, *own))))

    def beat() -> None:
        while not ended.wait(BEAT):
            with suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield tell
    finally:
        ended.set()
        thread.join()
        with suppress(OSError):
            path.unlink(missing_ok=True)


def note_path(parts: Path, part: str) -> Path:
    """Where the job of a part keeps its note: hidden from whatever reads manifests."""
    return parts / f".{part}.running"


def read(folder: Path) -> dict[Path, Note]:
    """The notes below a folder whose jobs live; those that a killed job left behind are passed over."""
    found = {}
    for path in sorted(folder.rglob(".*.running")):
        with suppress(OSError, ValueError, TypeError):  # it ended meanwhile, or is no note
            note = Note(**json.loads(path.read_text(encoding="utf-8")))
            fresh = time.time() - path.stat().st_mtime < SILENT
            if fresh and (note.host != socket.gethostname() or alive(note.pid)):
                found[path] = note
    return found
