"""python -m eqbench status: what it counts, the reasons that it gives, the jobs that it sees, the time that it foretells."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import board
import pytest

from eqbench import running
from eqbench.cells import read_cells
from eqbench.forecast import Forecast, duration
from eqbench.results import Status
from eqbench.running import Note
from eqbench.status import status_text

ROOT = Path(__file__).parents[1]


def note(cell: str, host: str = "n1", pid: int = 1, job: str | None = None) -> Note:
    return Note(cell, 2, 7, host, pid, job, started=1000.0)


def told(plan, folder: Path, notes: dict[Path, Note] | None = None) -> str:
    return "\n".join(status_text(read_cells(plan, folder), notes or {}, folder / "weights", now=1090.0))


def test_every_cell_is_counted_once(tmp_path):
    plan = board.suite()

    def change(cell, result):
        if cell.group == "vflip":
            return None
        if cell.group == "c4":
            return board.fail(result, "the loss is not finite" if cell.seed == "s0" else "out of GPU memory")
        if cell.group == "d4":
            return board.fail(result, "no declared layout", Status.skipped)
        if cell.probe == "spectrum":
            result.config["probe"] = result.config["probe"] | {"top": 99}
        return result

    board.fill(tmp_path, plan, change)
    counts = read_cells(plan, tmp_path).counts
    text = told(plan, tmp_path)
    assert sum(counts.values()) == len(plan.cells)
    for name, count in counts.items():
        assert count > 0
        assert re.search(rf"^  {name} +{count}$", text, re.MULTILINE)
    finished = counts["ok"] + counts["failed"] + counts["skipped"]
    assert f"{finished} of {len(plan.cells)} cells done ({100 * finished / len(plan.cells):.0f} %)" in text
    broken = [cell for cell in plan.cells if cell.group == "c4" and cell.seed == "s0"]
    assert f"  {len(broken)} × {broken[0]}: the loss is not finite" in text
    assert "configuration changed: probe.top 99 → 10" in text
    assert f"left: {counts['stale'] + counts['not run']} cells" in text


def test_a_finished_suite_has_nothing_left(tmp_path):
    plan = board.fill(tmp_path)
    assert told(plan, tmp_path).endswith("nothing is left to measure")


def test_running_cells_and_the_time_left(tmp_path):
    """At two jobs half the work's time is left, but never less than the longest cell takes."""
    plan = board.suite()
    board.fill(tmp_path, plan, lambda cell, result: None if cell.model == "vit_digits" else result)
    todo = [cell for cell in plan.cells if cell.model == "vit_digits"]
    at_work = {tmp_path / "a": note(str(todo[0])), tmp_path / "b": note(str(todo[1]), job="4711")}
    text = told(plan, tmp_path, at_work)
    assert re.search(r"^  running +2$", text, re.MULTILINE)
    assert re.search(rf"^  not run +{len(todo) - 2}$", text, re.MULTILINE)
    assert f"{todo[0]}, 2 of 7 cells before it, for 90 s on n1, process 1" in text
    assert f"{todo[1]}, 2 of 7 cells before it, for 90 s on n1, job 4711" in text
    work = sum(Forecast(read_cells(plan, tmp_path), tmp_path).expected[cell].seconds for cell in todo)
    assert f"left: {len(todo)} cells, {duration(work)} of work on one cpu ({len(todo)} by the law of costs)" in text
    assert f"at 2 at once: {duration(work / 2)}" in text
    assert "and the weights of 2 (model, seed), which come first: vit_digits s0, ..." in text


def test_long_lists_and_long_reasons_are_cut(tmp_path):
    plan = board.suite()
    board.fill(tmp_path, plan, lambda cell, result: board.fail(result, f"{cell} " + "said much " * 50))
    lines = told(plan, tmp_path).splitlines()
    assert len(lines) < 20
    assert max(map(len, lines)) <= 202
    assert any(line.startswith("  and ") and line.endswith(" more") for line in lines)


def test_a_note_lives_with_its_job(tmp_path):
    path = running.note_path(tmp_path / "suite/m/s0/init", "all")
    with running.noted(path, 3) as tell:
        assert running.read(tmp_path / "suite") == {}
        tell("m/s0/init/c4/orbit", 1)
        (seen,) = running.read(tmp_path / "suite").values()
        assert (seen.cell, seen.done, seen.of, seen.pid) == ("m/s0/init/c4/orbit", 1, 3, os.getpid())
    assert list(path.parent.iterdir()) == []


def test_notes_of_dead_jobs_are_passed_over(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    old = time.time() - 2 * running.SILENT
    for name, host, pid, when in (
        ("dead here", socket.gethostname(), process.pid, None),
        ("silent elsewhere", "another", 1, old),
        ("alive elsewhere", "another", 1, None),
    ):
        path = tmp_path / f".{name}.running"
        path.write_text(json.dumps(note("c", host, pid).__dict__))
        if when:
            os.utime(path, (when, when))
    (tmp_path / ".half.running").write_text('{"cell": ')
    assert [path.name for path in running.read(tmp_path)] == [".alive elsewhere.running"]


def test_a_beating_note_stays_fresh(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "BEAT", 0.05)
    path = tmp_path / ".all.running"
    with running.noted(path, 1) as tell:
        tell("c", 0)
        os.utime(path, (0, 0))
        deadline = time.time() + 10
        while path.stat().st_mtime == 0 and time.time() < deadline:
            time.sleep(0.02)
        assert running.read(tmp_path)


def test_a_disk_that_takes_no_note_costs_the_note_alone(tmp_path):
    (tmp_path / "file").write_text("")
    with running.noted(tmp_path / "file/below/.all.running", 1) as tell:
        tell("c", 0)


MODEL = "timm: test_resnet\nsource: train\ntrain: brief\nimage_size: 32\n"
SUITE = "pack: run\nblocks:\n  one: {models: [a], data: digits, groups: [hflip, c4, d4], probes: [orbit], states: [final]}\n"


@pytest.mark.parametrize("killed", [False, True])
def test_while_a_run_is_going_on(tmp_path, killed):
    """A real probe job is seen at its cell; killed, it is not, and its cells are neither running nor lost."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    for name, text in (
        ("model/a", MODEL),
        ("train/brief", "data: digits\nepochs: 1\nwarmup_epochs: 0\n"),
        ("suite/tiny", SUITE),
    ):
        (tmp_path / f"conf/{name}.yaml").write_text(text)
    eqbench = [sys.executable, "-m", "eqbench"]
    subprocess.run([*eqbench, "train", "model=a"], cwd=tmp_path, check=True, capture_output=True, timeout=200)
    probe = subprocess.Popen([*eqbench, "probe", "suite=tiny", "model=a"], cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        deadline, seen = time.time() + 120, {}
        while not seen and probe.poll() is None and time.time() < deadline:
            seen = running.read(tmp_path / "data/parts/tiny")
            time.sleep(0.01)
        assert [one.pid for one in seen.values()] == [probe.pid]
        if killed:
            probe.send_signal(signal.SIGKILL)
        else:
            probe.send_signal(signal.SIGSTOP)  # so that it is still there when asked
        if killed:
            probe.wait()
        text = subprocess.run(
            [*eqbench, "status", "suite=tiny"], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert text.returncode == 0, text.stderr
        assert ("  running  1" in text.stdout) is not killed
        assert (f"process {probe.pid}" in text.stdout) is not killed
        assert "left: " in text.stdout
        probe.send_signal(signal.SIGCONT)
        assert killed or probe.wait(timeout=200) == 0
    finally:
        probe.kill()
        probe.wait()
    subprocess.run(
        [*eqbench, "probe", "suite=tiny", "model=a"], cwd=tmp_path, check=True, capture_output=True, timeout=200
    )
    assert not list((tmp_path / "data/parts").rglob(".*"))  # not even the note of the job that was killed
