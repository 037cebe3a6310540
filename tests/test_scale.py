"""Large suites: 11,000 and 110,000 cells are planned, 10,000 results become boards, figures and a page, with room to spare.

The bounds are on processor time, because tests share their machine; `reliability` records the time on the clock, too. They
are seconds of the machine of reports/reliability.md: a slower one has as many more as a fixed piece of work takes there.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import board
import pytest

from eqbench import config, options, results
from eqbench.config import Cell
from eqbench.results import Layer, Result

ROOT = Path(__file__).parents[1]
SNAKEMAKE = [str(Path(sys.executable).with_name("snakemake")), "--snakefile", str(ROOT / "Snakefile")]
KINDS = ("resnet", "convnext", "vit", "efficientnet")
FINITE, CONTINUOUS = "hflip, vflip, c4, d4, transpose", "translation, rotation, scale, shear_x, shear_y"


@dataclass(frozen=True)
class Done:
    """What a command said and took."""

    stdout: str
    stderr: str
    slower: float  # than the machine of the bounds, while the command ran; at least 1
    seconds: float
    cpu_seconds: float
    peak_mb: float

    @property
    def figures(self) -> dict[str, float]:
        return {name: round(getattr(self, name), 1) for name in ("seconds", "cpu_seconds", "peak_mb", "slower")}


def write_suite(folder: Path, models: int, seeds: int) -> None:
    """A suite `large` of models x seeds x 2 states x 25 cells."""
    shutil.copytree(ROOT / "conf", folder / "conf")
    names = [f"{KINDS[i % 4]}_{i:03d}" for i in range(models)]
    for name in names:
        text = f"timm: test_{name[:-4]}\nsource: train\ntrain: digits\nimage_size: 32\n"
        (folder / f"conf/model/{name}.yaml").write_text(text)
    (folder / "conf/suite/large.yaml").write_text(
        f"blocks:\n  one:\n    models: [{', '.join(names)}]\n    data: digits\n    seeds: {seeds}\n"
        f"    groups: [{FINITE}, {CONTINUOUS}]\n    probes: [orbit, lie, consistency, spectrum, symmetries]\n"
        f"  two: {{models: [{', '.join(names)}], data: digits, seeds: {seeds}, groups: [hflip, c4, d4], probes: [circuits]}}\n"
    )


# A process counts the memory of the one that it was forked from: a small one forks, and tells what its child took.
LAUNCHER = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[2:]).returncode
took = resource.getrusage(resource.RUSAGE_CHILDREN)
open(sys.argv[1], "w").write(f"{took.ru_utime + took.ru_stime} {took.ru_maxrss / 1e3}")
sys.exit(code)
"""


FIXED_WORK = 0.225  # seconds, on the machine of the bounds


def fixed_work() -> float:
    """Seconds that some sorting, writing and reading of JSON takes: what the commands mostly do."""
    start = time.process_time()
    for k in range(40):
        rows = [{"name": f"layer.{i}", "value": i / 7, "lo": None, "shape": [i, k]} for i in range(2000)]
        json.loads(json.dumps(sorted(rows, key=lambda row: (-row["value"], row["name"])), sort_keys=True))
    return time.process_time() - start


def run(folder: Path, *command: str) -> Done:
    """Run a command to its end; its peak is that of its largest process."""
    works = [fixed_work() for _ in range(3)]
    with open(folder / "out", "w+") as out, open(folder / "err", "w+") as err:
        start = time.perf_counter()
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        launched = [sys.executable, "-c", LAUNCHER, "took", *command]
        code = subprocess.run(launched, cwd=folder, stdout=out, stderr=err, env=environment).returncode
        took = time.perf_counter() - start, *map(float, (folder / "took").read_text().split())
        slower = max(1.0, statistics.mean([*works, *(fixed_work() for _ in range(3))]) / FIXED_WORK)
        done = Done(*(stream.seek(0) or stream.read() for stream in (out, err)), slower, *took)
    assert code == 0, done.stderr[-2000:]
    return done


def eqbench(folder: Path, verb: str) -> Done:
    return run(folder, sys.executable, "-m", "eqbench", verb, "suite=large")


@pytest.mark.parametrize(
    ("models", "seeds", "pack", "bound"), [(44, 5, "group", 30), (44, 5, "cell", 45), (220, 10, "group", 240)]
)
def test_a_plan_of_many_cells(tmp_path, reliability, models, seeds, pack, bound):
    write_suite(tmp_path, models, seeds)
    count = models * seeds * 2 * 25
    done = run(tmp_path, *SNAKEMAKE, "--dry-run", "--quiet", "all", "--config", "suite=large", f"overrides=[suite.large.pack={pack}]")  # fmt: skip
    reliability(f"plan {count:,} cells, pack: {pack}", **done.figures)
    assert done.cpu_seconds < bound * done.slower
    assert done.peak_mb < 3000


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """A folder with 10,000 results of 208 models: twelve layers each, one in eighty failed, some cells not run."""
    folder = tmp_path_factory.mktemp("measured")
    write_suite(folder, 208, 1)
    here = Path.cwd()
    os.chdir(folder)
    try:
        options.load.cache_clear()
        options.plain.cache_clear()
        plan = config.load_suite("large")
        kept = dict(list(plan.cells.items())[:10_000])
        assert len(kept) == 10_000 < len(plan.cells)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda handle: None)
            board.fill(folder / "data/cells", replace(plan, cells=kept), deepen)
    finally:
        os.chdir(here)
        options.load.cache_clear()
        options.plain.cache_clear()
    return folder


def deepen(cell: Cell, result: Result) -> Result:
    """As many layers as a network has blocks; now and then a cell fails."""
    if results.identity({"cell": str(cell)}, "", "").startswith(("00", "01", "02")):
        return board.fail(result, "out of GPU memory: lower `batch` of the model")
    result.layers += [Layer(f"late.{layer.name}", layer.depth, layer.shape, layer.coverage, layer.reason, layer.metrics)
                      for layer in result.layers if layer.coverage]  # fmt: skip
    return result


@pytest.mark.parametrize("verb", ["status", "plan", "collect", "plot", "report"])
def test_ten_thousand_results(measured, reliability, verb):
    done = eqbench(measured, verb)
    reliability(f"{verb} of 10,000 results", **done.figures)
    assert done.cpu_seconds < 60 * done.slower
    assert done.peak_mb < 1000
    if verb == "status":
        assert "of 10400 cells done (96 %)" in done.stdout
        assert "out of GPU memory" in done.stdout
    if verb == "report":
        page = measured / "reports/large/index.html"
        assert page.stat().st_size < 12e6
        assert page.read_text().count("<tr") > 2000
