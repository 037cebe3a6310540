"""Runs first in each Python that finds it: notes on which node and GPU a job runs, and makes some jobs misbehave.

$WITNESS is a folder: `<part>.mischief` says what is to happen to a part's first start, `<part>.jsonl` has a line a start
and a line an end.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path


def part(words: list[str]) -> str:
    names = dict(word.split("=", 1) for word in words if "=" in word)
    return "+".join([words[3], *(names[key] for key in ("model", "seed", "state", "part") if key in names)])


def note(path: Path, **facts: object) -> None:
    with path.open("a") as file:
        file.write(json.dumps(facts | {"time": time.time()}) + "\n")


def end(path: Path) -> None:
    hub = sys.modules.get("huggingface_hub.constants")
    note(path, event="end", job=os.environ.get("SLURM_JOB_ID"), offline=getattr(hub, "HF_HUB_OFFLINE", None))


def stall(cells: int) -> None:
    """Stop for good, as on a file system that hangs, once so many cells are there."""

    def watch() -> None:
        names = dict(word.split("=", 1) for word in sys.orig_argv if "=" in word)
        root = Path("data/cells", names["suite"], names["model"], names["seed"], names["state"])
        while len(list(root.glob(f"{names['part']}/[!.]*.json"))) < cells:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGSTOP)

    threading.Thread(target=watch, daemon=True).start()


def hog(megabytes: int) -> None:
    """Hold so much memory, and give SLURM, which looks once a second, the time to see it."""
    held.append(b"x" * (megabytes << 20))
    time.sleep(3)


held: list[bytes] = []
if sys.orig_argv[1:3] == ["-m", "eqbench"] and "WITNESS" in os.environ:
    name = part(sys.orig_argv)
    log, mischief = (Path(os.environ["WITNESS"], f"{name}.{ending}") for ending in ("jsonl", "mischief"))
    first = not log.exists()
    job = os.environ.get("SLURM_JOB_ID")
    asked = {}
    if job:
        columns = ["timelimit:20", "minmemory:20", "tres-per-job:20"]
        said = subprocess.run(["squeue", "-hj", job, "-O", ",".join(columns)], capture_output=True, text=True).stdout
        asked = dict(zip(("limit", "memory", "gpus"), said.split(), strict=True))
    where = {"node": os.environ.get("SLURMD_NODENAME"), "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}
    note(log, event="start", job=job, **asked, **where)
    atexit.register(end, log)
    verb, _, amount = (mischief.read_text() if mischief.exists() else "").partition(" ")
    if verb == "stall" and first:
        stall(int(amount or 0))
    elif verb == "hog":
        asked_first = json.loads(log.read_text().splitlines()[0])["memory"]
        hog(int(int(asked_first.removesuffix("M")) * float(amount)))
    elif verb == "wait" and first:
        time.sleep(float(amount))
