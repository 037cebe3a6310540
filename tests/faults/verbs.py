"""A process that has imported everything and forks once a verb, so that a verb costs its work alone: many can be killed.

Each line of its input is a job {argv, folder, after, operation, err}: run `eqbench argv` in the folder and kill -9 its process
group `after` seconds, or before its n-th operation on files of the folder. Each line of its output says how it ended.
"""

import contextlib
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import time
from pathlib import Path

IN_PLACE = "written in place, where a kill would leave half of it:"
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.symlink", "os.link", "shutil.rmtree"}


class Verbs:
    """A handle on that process."""

    def __init__(self):
        command = [sys.executable, __file__]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __call__(self, folder, *argv, after=None, operation=None, err=None):
        """Returns: code (negative: a signal), seconds, operations (how many changes to files), err (standard error, kept in the file `err`)."""
        job = {"argv": argv, "folder": str(folder), "after": after, "operation": operation, "err": err}
        print(json.dumps(job), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(30)


def _main():
    from eqbench import cli, probes

    for name in ("training", "fetch", "plots", "report", "runner", "leaderboard", "preprocessing"):
        importlib.import_module(f"eqbench.{name}")
    for module in pkgutil.iter_modules(probes.__path__, "eqbench.probes."):
        importlib.import_module(module.name)
    for line in sys.stdin:
        job = json.loads(line)
        reader, writer = os.pipe()
        errors = Path(job["err"] or f"{job['folder']}/.stderr")
        errors.touch()
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            with errors.open("w") as file:
                os.dup2(file.fileno(), 2)
                os.dup2(file.fileno(), 1)
            _run(cli, job, writer)
        with contextlib.suppress(OSError):  # the child has done so itself
            os.setpgid(child, child)
        os.close(writer)
        if job["after"] is not None:
            pause = job["after"] - (time.monotonic() - start)
            time.sleep(max(pause, 0))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        seconds = time.monotonic() - start
        with os.fdopen(reader) as pipe:
            counted = pipe.read()
        answer = {"code": os.waitstatus_to_exitcode(status), "seconds": seconds, "operations": int(counted or 0)}
        answer["err"] = errors.read_text()
        errors.unlink()
        print(json.dumps(answer), flush=True)


def _run(cli, job, writer):
    """In the child: never returns."""
    code = 70
    try:
        os.chdir(job["folder"])
        counted = _count(job["folder"], job["operation"])
        code = cli.main(job["argv"])
        os.write(writer, str(counted[0]).encode())
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(code)


def _count(folder, stop):
    """Count the operations that change files of the folder; kill -9 the process group before operation number `stop`."""
    counted = [0]

    def hook(event, arguments):
        if event == "open":
            path, _, flags = arguments
            changes = flags is not None and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            event = "write" if changes else None
        elif event in CHANGES:
            path = arguments[0]
        else:
            return
        if event is None or not isinstance(path, str | os.PathLike):
            return
        full = os.path.abspath(os.fspath(path))
        if full.startswith(folder):
            counted[0] += 1
            below = Path(full).relative_to(folder)
            if event == "write" and not any(part.startswith(".") for part in below.parts):
                print(f"{IN_PLACE} {below}", file=sys.stderr, flush=True)
            if counted[0] == stop:
                os.killpg(0, signal.SIGKILL)

    sys.addaudithook(hook)
    return counted


if __name__ == "__main__":
    _main()
