"""A suite small enough for tests, and a folder that it runs in, on this machine or on a cluster."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
SNAKEMAKE = [str(Path(sys.executable).with_name("snakemake")), "--snakefile", str(ROOT / "Snakefile")]
# The site's lines of conf/slurm/README.md, and looks at the queue as often as a test can wait for them.
SITE = ["--slurm-status-command", "squeue", "--set-threads", "train=1", "probe=1"]
SITE += ["--slurm-init-seconds-before-status-checks", "4", "--latency-wait", "10"]
ON_CLUSTER = ["--workflow-profile", "conf/slurm", *SITE]
# Cut from the digits part of suite demo: one of its networks, two of its groups; and a network whose logits overflow.
FILES = {
    "model/overflowing.yaml": "timm: test_resnet\nsource: file\npath: overflowing.safetensors\nimage_size: 32\n"
    "args: {avg_down: false, num_classes: 10}\n",
    "suite/night.yaml": "pack: group\nblocks:\n"
    "  digits: {models: [resnet_digits], data: digits, groups: [hflip, c4], probes: [orbit, consistency]}\n"
    "  broken: {models: [overflowing], data: digits, groups: [hflip], probes: [orbit], states: [final]}\n"
    "overrides: [train.digits.epochs=2, probe.orbit.images=16, probe.orbit.resamples=100, probe.orbit.floor_images=4,"
    " probe.consistency.images=16, probe.consistency.resamples=100]\n",
    "config.yaml": "suite: night\n",
}
WEIGHTS = """
import timm, torch
from safetensors.torch import save_file
torch.manual_seed(0)
tensors = timm.create_model("test_resnet", num_classes=10, avg_down=False).state_dict()
tensors["fc.weight"] = torch.full_like(tensors["fc.weight"], 3e38)
save_file(tensors, "overflowing.safetensors")
"""


@dataclass
class Site:
    """A folder that the suite runs in, on this machine or on a cluster.

    Attributes:
        witness: where jobs note when, where and with what they ran: see witness/sitecustomize.py.
        targets: what Snakemake is asked for; none: everything, the page included.
        before: cells that were finished when a fault struck.
    """

    folder: Path
    witness: Path
    environment: dict[str, str]
    targets: list[str] = field(default_factory=list)
    before: dict[str, int] = field(default_factory=dict)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Snakemake, in a process group of its own, until this process ends; what it says goes to its folder."""
        paths = {"WITNESS": str(self.witness), "PYTHONPATH": str(Path(__file__).parent / "witness")}
        said = (self.folder / "said.txt").open("w")
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *SNAKEMAKE, *self.targets, *arguments],
            cwd=self.folder,
            env=os.environ | self.environment | paths,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )

    def end(self, run: subprocess.Popen[str]) -> int:
        """Its exit code; a run that does not end is killed, which is an error."""
        try:
            return run.wait(240)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            raise AssertionError(f"Snakemake did not end:\n{self.said}") from None

    def run(self, *arguments: str) -> int:
        return self.end(self.start(*arguments))

    @property
    def said(self) -> str:
        return (self.folder / "said.txt").read_text()

    def mischief(self, part: str, what: str) -> None:
        self.witness.joinpath(f"probe+resnet_digits+s0+{part}.mischief").write_text(what)

    def notes(self, part: str = "*", event: str = "start", pattern: str = "") -> list[dict]:
        """The starts, or ends, of a part of the network's, or of all jobs, in the order of time."""
        names = pattern or ("*" if part == "*" else f"probe+resnet_digits+s0+{part}")
        paths = self.witness.glob(f"{names}.jsonl")
        lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
        return sorted((line for line in lines if line["event"] == event), key=lambda line: line["time"])

    def logs(self) -> str:
        """What Snakemake said, and the jobs that died."""
        return self.said + "".join(path.read_text() for path in self.folder.glob("data/logs/**/*.log"))

    def cells(self) -> dict[str, int]:
        """Cell -> when its file was written."""
        root = self.folder / "data/cells/night"
        return {str(p.relative_to(root).with_suffix("")): p.stat().st_mtime_ns for p in root.rglob("[!.]*.json")}

    def results(self) -> dict[str, dict]:
        """Cell -> its result, but for its cost, its start, and which job it was."""
        found = {}
        for cell in self.cells():
            tree = json.loads((self.folder / f"data/cells/night/{cell}.json").read_text())
            for key in ("started", "slurm_job", "git", "dirty"):
                del tree["provenance"][key]
            del tree["cost"], tree["checksum"]
            found[cell] = tree
        return found

    def lost(self) -> int:
        """Bytes of cells that were finished when the fault struck, and have been made anew since."""
        now, root = self.cells(), self.folder / "data/cells/night"
        return sum((root / f"{cell}.json").stat().st_size for cell, when in self.before.items() if now[cell] != when)

    def forget(self, *parts: str) -> None:
        """Lose the cells and manifests of these parts, <state>/<group>, and ask for nothing but them."""
        self.targets = [f"data/parts/night/resnet_digits/s0/{part}.json" for part in parts]
        for part, manifest in zip(parts, self.targets, strict=True):
            shutil.rmtree(self.folder / f"data/cells/night/resnet_digits/s0/{part}")
            (self.folder / manifest).unlink()


def until(true: Callable[[], object], seconds: float = 120) -> None:
    """Wait for it."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)
