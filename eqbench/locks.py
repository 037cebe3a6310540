"""Processes that share a working folder: locks that the system releases however one ends, and which still live (no torch).

A file system that has no locks (some that are shared over a network) goes without: every file is written whole anyway,
so that two processes which do the same work at once waste time and nothing else.
"""

import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCKLESS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock file `path` as the only process; wait for one that holds it. It is removed at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if _lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB) is False:
            print(f"eqbench: {path.parent}: another process writes here; waiting for it", file=sys.stderr, flush=True)
            _lock(handle, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(handle)):
                break
        os.close(handle)  # whoever held it has removed it since
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def adopt(folder: Path) -> None:
    """Remove what locks a working folder after a Snakemake that was killed, so that the same command goes on.

    Each Snakemake holds a shared lock as long as it lives. One that can have it alone knows that the others are dead,
    if they ran on this machine: not every shared file system takes locks from one machine to the next.

    Args:
        folder: .snakemake of the working folder.
    """
    folder.mkdir(exist_ok=True)
    handle = os.open(folder / "eqbench.lock", os.O_RDWR | os.O_CREAT, 0o644)  # closed by the end of the process
    here = socket.gethostname().encode()
    if _lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB):
        left = list((folder / "locks").glob("*.lock"))
        if not left or os.pread(handle, 1000, 0) == here:
            for path in left:
                path.unlink(missing_ok=True)
            os.truncate(handle, 0)
            os.pwrite(handle, here, 0)
    _lock(handle, fcntl.LOCK_SH)


def alive(pid: int) -> bool:
    """Whether a process of this machine lives, anybody's."""
    try:
        os.kill(pid, 0)
    except OSError as error:  # EPERM: it is somebody else's
        return error.errno != errno.ESRCH
    return True


def _lock(handle: int, how: int) -> bool | None:
    """Whether the lock was to be had; None: there are none on this file system."""
    try:
        fcntl.flock(handle, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in LOCKLESS:
            raise
        return None
    return True
