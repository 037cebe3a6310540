"""Its place puts tests/ on the import path: the tests below it share board.py and hub_server.py."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # workers side by side, and what they start, keep to one thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")
