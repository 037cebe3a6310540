"""The workflow for real, on a suite of two tiny networks: what runs, what reruns, what a kill costs."""

import contextlib
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from eqbench import plots

ROOT = Path(__file__).parents[2]
SNAKEMAKE = [str(Path(sys.executable).with_name("snakemake")), "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]
MODEL = "timm: test_resnet\nsource: train\ntrain: brief\nimage_size: 32\nargs: {avg_down: false}\n"
FILES = {
    "model/a.yaml": MODEL,
    "model/b.yaml": MODEL + "batch: 16\n",
    "train/brief.yaml": "data: digits\nepochs: 2\n",
    "probe/orbit.yaml": "images: 16\nresamples: 100\nfloor_images: 4\n",
    "probe/spectrum.yaml": "images: 16\ntop: 2\nmax_products: 6\ntrace_products: 3\ndensity_probes: 2\ndensity_steps: 3\n",
    "suite/tiny.yaml": "pack: run\nblocks:\n"
    "  digits: {models: [a, b], data: digits, groups: [hflip, c4], probes: [orbit, spectrum], states: [final]}\n"
    "  photos: {models: [a], data: photos, groups: [d4], probes: [orbit, spectrum], states: [init]}\n",
    "config.yaml": "suite: tiny\n",
}
CELLS = {
    "a/s0/final/hflip/orbit",
    "a/s0/final/c4/orbit",
    "a/s0/final/none/spectrum",
    "b/s0/final/hflip/orbit",
    "b/s0/final/c4/orbit",
    "b/s0/final/none/spectrum",
    "a/s0/init/d4/orbit",
    "a/s0/init/none/spectrum",
}


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SNAKEMAKE, *arguments], cwd=folder, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL
    )


def cells(folder: Path) -> dict[str, int]:
    """Cell -> when its file was written."""
    root = folder / "data/cells/tiny"
    return {str(p.relative_to(root).with_suffix("")): p.stat().st_mtime_ns for p in root.rglob("[!.]*.json")}


def contents(folder: Path) -> dict[str, dict]:
    """Cell -> its result, but for cost, start time and the state of the sources."""
    found = {}
    for cell in cells(folder):
        tree = json.loads((folder / "data/cells/tiny" / f"{cell}.json").read_text())
        del tree["checksum"], tree["cost"]
        del tree["provenance"]["started"], tree["provenance"]["git"], tree["provenance"]["dirty"]
        found[cell] = tree
    return found


def rewritten(folder: Path, before: dict[str, int]) -> set[str]:
    return {cell for cell, when in cells(folder).items() if before.get(cell) != when}


def write(folder: Path, name: str, text: str) -> None:
    path = folder / "conf" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder in which the suite has run once, undisturbed."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(ROOT / "conf", folder / "conf")
    for name, text in FILES.items():
        write(folder, name, text)
    done = snakemake(folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    """A copy of it to disturb: times and Snakemake's own records included."""
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    return copy


def test_the_whole_road(finished):
    assert set(cells(finished)) == CELLS
    statuses = {cell: tree["status"] for cell, tree in contents(finished).items()}
    assert set(statuses.values()) == {"ok"}
    reports = finished / "reports/tiny"
    for name in ("index.html", "results.csv", "leaderboard.csv", "figures/heatmap.svg"):
        assert (reports / name).stat().st_size > 0
    assert "ggn_lambda_max" in (reports / "results.csv").read_text()  # photos have no labels: the Gauss-Newton form
    again = snakemake(finished)
    assert again.returncode == 0
    assert "Nothing to be done" in again.stdout + again.stderr


def test_a_models_yaml_recomputes_its_cells(folder):
    before, weights = cells(folder), (folder / "data/weights/b/s0/card.json").stat().st_mtime_ns
    write(folder, "model/b.yaml", MODEL + "batch: 8\n")
    assert snakemake(folder).returncode == 0
    assert rewritten(folder, before) == {cell for cell in CELLS if cell.startswith("b/")}
    assert (folder / "data/weights/b/s0/card.json").stat().st_mtime_ns == weights  # a batch size does not retrain


def test_a_probes_yaml_recomputes_its_cells(folder):
    before = cells(folder)
    write(folder, "probe/spectrum.yaml", FILES["probe/spectrum.yaml"].replace("top: 2", "top: 1"))
    assert snakemake(folder).returncode == 0
    assert rewritten(folder, before) == {cell for cell in CELLS if cell.endswith("spectrum")}


def test_an_override_recomputes_what_it_touches(folder):
    before = cells(folder)
    assert snakemake(folder, "--config", "overrides=[group.c4.placebo=none]").returncode == 0
    assert rewritten(folder, before) == {cell for cell in CELLS if "/c4/" in cell}
    assert "placebo_gap" not in contents(folder)["a/s0/final/c4/orbit"]["metrics"]


def test_comments_and_touching_recompute_nothing(folder):
    write(folder, "model/a.yaml", "# nothing but a comment\n" + MODEL)
    (folder / "conf/probe/orbit.yaml").touch()
    done = snakemake(folder)
    assert "Nothing to be done" in done.stdout + done.stderr


def test_packing_recomputes_nothing(folder):
    before, results = cells(folder), contents(folder)
    for pack in ("cell", "group", "seed"):
        assert snakemake(folder, "--config", f"overrides=[suite.tiny.pack={pack}]").returncode == 0
        assert rewritten(folder, before) == set()
    for pack in ("cell", "seed"):
        shutil.rmtree(folder / "data/cells")
        shutil.rmtree(folder / "data/parts")
        assert snakemake(folder, "--config", f"overrides=[suite.tiny.pack={pack}]").returncode == 0
        assert contents(folder) == results  # nor do results depend on it


def test_packing_and_overriding_there_and_back_leaves_nothing_stale(folder):
    """Manifests of another packing, or of a run by hand, never vouch for cells that have changed since."""
    results, override = contents(folder), "probe.orbit.resamples=200"
    for pack, back in (("cell", "run"), ("seed", "run"), ("run", "seed")):
        assert snakemake(folder, "--config", f"overrides=[suite.tiny.pack={pack}, {override}]").returncode == 0
        assert contents(folder) != results
        assert snakemake(folder, "--config", f"overrides=[suite.tiny.pack={back}]").returncode == 0
        assert contents(folder) == results
    by_hand = [sys.executable, "-m", "eqbench", "probe", "suite=tiny", "model=b", "part=c4", override]
    assert subprocess.run(by_hand, cwd=folder, capture_output=True).returncode == 0
    assert contents(folder) != results
    assert snakemake(folder).returncode == 0
    assert contents(folder) == results


def test_changed_weights_recompute_their_cells(folder):
    before = cells(folder)
    write(folder, "train/brief.yaml", FILES["train/brief.yaml"] + "lr: 5e-4\n")
    assert snakemake(folder).returncode == 0
    assert rewritten(folder, before) == {cell for cell in CELLS if "/final/" in cell}  # init is as it was


def test_a_cell_that_is_lost_or_spoilt_is_computed_again(folder):
    before = contents(folder)
    (folder / "data/cells/tiny/a/s0/final/c4/orbit.json").write_text('{"half": ')
    (folder / "data/cells/tiny/a/s0/final/hflip/orbit.json").unlink()
    (folder / "data/parts/tiny/a/s0/final/all.json").unlink()
    assert snakemake(folder).returncode == 0
    assert contents(folder) == before


def _jobs(snakemake_pid: int, verb: str):
    """The running jobs of this verb."""
    for process in psutil.Process(snakemake_pid).children(recursive=True):
        try:
            if process.name().startswith("python") and verb in process.cmdline():
                yield process
        except psutil.NoSuchProcess:
            continue  # it ended while it was looked at


def _kill_when(folder: Path, verb: str, ready) -> None:
    """Start Snakemake, wait until `ready()`, and kill -9 one job of this verb; Snakemake itself goes on to its end."""
    run = subprocess.Popen(SNAKEMAKE, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    try:
        while run.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(psutil.NoSuchProcess):
                jobs = list(_jobs(run.pid, verb))
                if jobs and ready(jobs[0]):
                    jobs[0].send_signal(signal.SIGKILL)
                    break
            time.sleep(0.02)
        else:
            raise AssertionError(f"no moment to kill {verb} came")
        assert run.wait(300) != 0
    finally:
        if run.poll() is None:
            for child in psutil.Process(run.pid).children(recursive=True):
                child.kill()
            run.kill()


MOMENTS = {
    "start": ("probe", lambda folder: lambda job: time.time() - job.create_time() > 0.3),
    "imports": ("probe", lambda folder: lambda job: time.time() - job.create_time() > 2),
    "first cell": ("probe", lambda folder: lambda job: bool(cells(folder))),
    "some cells": ("probe", lambda folder: lambda job: len(cells(folder)) > 2),
    "training": ("train", lambda folder: lambda job: bool(list(folder.glob("data/weights/*/s0/checkpoint.pt")))),
    "collect": ("collect", lambda folder: lambda job: time.time() - job.create_time() > 0.2),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_kill_nine_costs_nothing_but_time(finished, folder, moment):
    shutil.rmtree(folder / "data/cells")
    shutil.rmtree(folder / "data/parts")
    shutil.rmtree(folder / "reports")
    verb, ready = MOMENTS[moment]
    if verb == "train":
        shutil.rmtree(folder / "data/weights")
    _kill_when(folder, verb, ready(folder))
    done = snakemake(folder)
    assert done.returncode == 0, done.stderr
    assert contents(folder) == contents(finished)
    assert (folder / "reports/tiny/results.csv").read_bytes() == (finished / "reports/tiny/results.csv").read_bytes()


def test_snakemake_itself_killed(finished, folder):
    """Its lock has to be taken away; the same command then goes on, over outputs that it had begun to make anew."""
    command = [*SNAKEMAKE, "--config", "overrides=[probe.orbit.resamples=200]"]
    run = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    before = cells(folder)
    while run.poll() is None and not rewritten(folder, before):
        time.sleep(0.02)
    family = [*psutil.Process(run.pid).children(recursive=True), psutil.Process(run.pid)]
    for process in reversed(family):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    run.wait()
    psutil.wait_procs(family, timeout=10)
    assert snakemake(folder, "--unlock").returncode == 0
    done = snakemake(folder)
    assert done.returncode == 0, done.stderr
    assert contents(folder) == contents(finished)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--config", "suit=tiny"), "unknown key of --config: 'suit': did you mean 'suite'?"),
        (("--config", "suite=tin"), "unknown suite 'tin': did you mean 'tiny'?"),
        (("--config", "overrides=[probe.orbit.imags=3]"), "unknown key 'imags': did you mean 'images'?"),
    ],
)
def test_a_mistake_is_one_line_before_any_job(finished, arguments, words):
    done = snakemake(finished, *arguments)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("eqbench:")]
    assert words in line
    assert "Traceback" not in done.stderr
    assert "Building DAG" not in done.stderr


def test_a_jobs_mistake_reaches_the_terminal(folder):
    (folder / "data/weights/b/s0/final/model.safetensors").write_bytes(b"spoilt")
    (folder / "data/parts/tiny/b/s0/final/all.json").unlink()
    done = snakemake(folder)
    assert done.returncode == 1
    assert "eqbench: error: data/weights/b/s0/final/model.safetensors: expected sha256" in done.stderr


def test_a_job_refuses_another_configuration_than_was_planned(folder):
    before = cells(folder)
    command = [sys.executable, "-m", "eqbench", "probe", "suite=tiny", "model=b", "expect=" + "0" * 64]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert (done.returncode, rewritten(folder, before)) == (2, set())
    assert "run snakemake again" in done.stderr


def test_the_workflow_is_clean_and_reports(finished):
    assert (
        "good condition"
        in subprocess.run(
            [SNAKEMAKE[0], "--lint"], cwd=ROOT, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"}
        ).stdout
        + subprocess.run([SNAKEMAKE[0], "--lint"], cwd=ROOT, capture_output=True, text=True).stderr
    )
    done = snakemake(finished, "--report", "report.html")
    assert done.returncode == 0, done.stderr
    text = (finished / "report.html").read_text()
    assert "heatmap" in text
    plain = re.sub(r"\\u([0-9a-f]{4})", lambda found: chr(int(found[1], 16)), text)
    shown = html.unescape(re.sub(r"<[^>]*>", "", plain))
    for name, caption in plots.FIGURES.items():
        assert caption.split(".")[0] in shown, f"the caption of {name}"
    assert not re.search(r'(src|href)="https?://[^"]*\.(js|css)"', text)
