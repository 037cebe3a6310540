"""Its place puts tests/ on the import path: the tests below it share board.py, hub_server.py and others."""

import json
import os
import signal
from collections.abc import Callable

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # workers side by side, and what they start, keep to one thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# What a shell runs in the background ignores interrupts, and so would all that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def reliability(record_property) -> Callable[..., None]:
    """Call it when a fault has been tried: a row of the table that `make reliability` writes.

    Args of the call:
        fault: what was done; calls with the same words are one row. tried, survived: how often. bytes_lost: of finished
        work. figures: measurements, their unit in their name (`seconds=3.2`, `peak_mb=310`).
    """

    def row(fault: str, tried: int = 1, survived: int | None = None, bytes_lost: int = 0, **figures: float) -> None:
        counts = {"tried": tried, "survived": tried if survived is None else survived, "bytes_lost": bytes_lost}
        record_property("reliability", json.dumps({"fault": fault, **counts, "figures": figures}))

    return row
