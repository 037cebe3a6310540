"""kill -9 at random moments, and before single operations on files: the same command then ends as if undisturbed."""

import base64
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from undisturbed import again, different, whole

ROOT = Path(__file__).parents[2]
MOMENTS = {"fetch": 7, "train": 9, "probe": 13, "collect": 7, "plot": 7, "report": 7}  # 50
OPERATIONS = {"fetch": 9, "train": 6, "probe": 6, "collect": 5, "plot": 3, "report": 3}
WORKFLOW_KILLS = 6
SNAKEMAKE = [str(Path(sys.executable).with_name("snakemake")), "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]


@pytest.mark.parametrize("verb", MOMENTS)
def test_killed_at_random_moments(verbs, stages, verb, tmp_path, reliability):
    stage, draw, killed, begun = stages[verb], random.Random(verb), 0, time.monotonic()
    for trial in range(5 * MOMENTS[verb]):
        folder = tmp_path / str(trial)
        shutil.copytree(stage.before, folder)
        ended = verbs(folder, *stage.argv, after=draw.uniform(0, 0.95 * stage.seconds))
        killed += ended["code"] == -signal.SIGKILL  # else it was through before its moment came
        whole(stage, folder)
        again(verbs, stage, folder)
        shutil.rmtree(folder)
        if killed == MOMENTS[verb]:
            break
    assert killed == MOMENTS[verb]
    reliability(f"kill -9 of {verb} at random moments", killed, seconds=time.monotonic() - begun)


@pytest.mark.parametrize("verb", OPERATIONS)
def test_killed_before_single_file_operations(verbs, stages, verb, tmp_path, reliability):
    stage = stages[verb]
    chosen = sorted(random.Random(verb).sample(range(1, stage.operations + 1), OPERATIONS[verb]))
    for operation in chosen:
        folder = tmp_path / str(operation)
        shutil.copytree(stage.before, folder)
        assert verbs(folder, *stage.argv, operation=operation)["code"] == -signal.SIGKILL
        whole(stage, folder)
        again(verbs, stage, folder)
    reliability(f"kill -9 of {verb} before one of its {stage.operations} operations on files", len(chosen))


def _kill(run: subprocess.Popen) -> None:
    """kill -9 Snakemake and everything that it has started."""
    family = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
    os.killpg(run.pid, signal.SIGKILL)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    run.wait()
    psutil.wait_procs(family, timeout=10)


def test_snakemake_killed_again_and_again(stages, folder, reliability):
    """Its whole process group, at random moments of one suite: the same command goes on, without --unlock."""
    draw, kills, begun, said = random.Random(0), 0, time.monotonic(), folder.parent / "said.txt"
    while kills < WORKFLOW_KILLS:
        with said.open("w") as file:
            run = subprocess.Popen(SNAKEMAKE, cwd=folder, stdout=file, stderr=file, start_new_session=True)
        try:
            assert run.wait(draw.uniform(1, 9)) == 0, said.read_text()
        except subprocess.TimeoutExpired:
            _kill(run)
            kills += 1
        else:  # it is through: from the beginning
            assert different(folder, stages["report"].after) == []
            for made in ("data", "reports", ".snakemake"):
                shutil.rmtree(folder / made)
    done = subprocess.run(SNAKEMAKE, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert different(folder, stages["report"].after) == []
    assert not list((folder / ".snakemake/locks").glob("*"))
    reliability("kill -9 of the process group of snakemake", kills, seconds=time.monotonic() - begun)


def test_a_kill_between_the_output_and_its_record(folder, reliability):
    """Snakemake marks a job's outputs as incomplete until it has noted how it ended: such an output is made again."""
    target = "data/weights/given/s0/card.json"

    def ran() -> bool:
        done = subprocess.run([*SNAKEMAKE, target], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return "rule fetch" in done.stderr

    assert [ran(), ran()] == [True, False]
    (folder / ".snakemake/incomplete" / base64.b64encode(target.encode()).decode()).touch()
    assert [ran(), ran()] == [True, False]
    reliability("kill -9 between an output and its record")
