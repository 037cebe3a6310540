"""Two runs at once in one folder, and runs that are interrupted: one line, nothing lost, and the same command goes on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from undisturbed import different

ROOT = Path(__file__).parents[2]
EQBENCH = [sys.executable, "-m", "eqbench"]
SNAKEMAKE = [str(Path(sys.executable).with_name("snakemake")), "--snakefile", str(ROOT / "Snakefile"), "--cores", "1"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def _start(command, folder, name) -> subprocess.Popen:
    with (folder / name).open("w") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=ENVIRONMENT, start_new_session=True)


@pytest.mark.parametrize("verb", ["fetch", "train", "probe"])
def test_one_verb_twice_at_once(stages, verb, tmp_path, reliability):
    folder = tmp_path / "work"
    shutil.copytree(stages[verb].before, folder)
    runs = [_start([*EQBENCH, *stages[verb].argv], folder, f"log{i}") for i in range(2)]
    assert [run.wait(120) for run in runs] == [0, 0], [(folder / f"log{i}").read_text() for i in range(2)]
    logs = "".join((folder / f"log{i}").read_text() for i in range(2))
    assert verb != "train" or "another process writes here; waiting for it" in logs
    assert different(folder, stages[verb].after) == []
    reliability(f"two runs of {verb} at once")


def _wait(run, ready) -> None:
    deadline = time.monotonic() + 120
    while run.poll() is None and not ready() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert run.poll() is None
    assert ready()


def test_snakemake_interrupted_terminated_and_started_twice(stages, folder, reliability):
    """SIGINT in training, SIGTERM in probing; then two at once: the second says so, and the first is not disturbed."""
    run = _start(SNAKEMAKE, folder, "log")
    _wait(run, lambda: list(folder.glob("data/weights/small/s0/checkpoint.pt")))
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait(60) != 0
    run = _start(SNAKEMAKE, folder, "log")
    _wait(run, lambda: list(folder.glob("data/cells/tiny/*/s0/final/*/orbit.json")))
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("data/cells/tiny/*/s0/final/*/orbit.json")}
    run.send_signal(signal.SIGTERM)
    run.wait(60)  # it ends the jobs that run, which may be all that there were
    shutil.rmtree(folder / "reports", ignore_errors=True)  # so that the next one has something to do
    run = _start(SNAKEMAKE, folder, "log")
    _wait(run, lambda: list((folder / ".snakemake/locks").glob("*.lock")))
    second = subprocess.run(SNAKEMAKE, cwd=folder, capture_output=True, text=True, env=ENVIRONMENT)
    assert second.returncode != 0
    assert "cannot be locked" in second.stderr
    assert run.wait(120) == 0, (folder / "log").read_text()
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())  # finished cells never rerun
    assert different(folder, stages["report"].after) == []
    for fault in ("SIGINT of snakemake in training", "SIGTERM of snakemake in probing", "a second snakemake at once"):
        reliability(fault)
