"""A full disk and a read-only one, each a small file system of its own: one line, nothing half-written, and then on."""

import os
import shutil
import subprocess

import pytest
from undisturbed import contents, whole

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="not root: no small file system can be mounted")


@pytest.fixture
def disk(tmp_path):
    """A file system in memory; `disk("size=64m")` and `disk("ro")` change it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here: no small file system")
    try:
        yield lambda how: subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True) and folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _one_line(done) -> None:
    assert done["code"] == 2, done["err"]
    lines = [line for line in done["err"].splitlines() if line.startswith("eqbench: error: ")]
    assert len(lines) == 1, done["err"]
    assert "Traceback" not in done["err"]


@pytest.mark.parametrize("verb", ["fetch", "train", "probe", "collect", "plot", "report"])
def test_the_disk_is_full(verbs, stages, disk, verb, reliability):
    """At the start, and after some of what the verb has to write."""
    stage, tried = stages[verb], 0
    folder = disk("size=64m") / "work"
    shutil.copytree(stage.before, folder)
    needed = sum(len(v) for v in stage.after.values() if isinstance(v, bytes)) - sum(
        len(v) for v in contents(stage.before).values() if isinstance(v, bytes)
    )
    filler = folder / "filler"
    for free in sorted({0, 4096, *(needed * share // 5 // 4096 * 4096 for share in (1, 2, 3))}):
        free_now = os.statvfs(folder).f_bavail * 4096
        filler.write_bytes(bytes(max(free_now - free, 0)))
        done = verbs(folder, *stage.argv, err=str(folder.parent.parent / "stderr"))
        filler.unlink()
        if done["code"] == 0:
            break  # that was enough
        _one_line(done)
        assert "No space left" in done["err"]
        whole(stage, folder)
        tried += 1
    assert tried >= 2
    done = verbs(folder, *stage.argv)
    assert done["code"] == 0, done["err"]
    assert contents(folder) == stage.after
    reliability(f"full disk in {verb}", tried)


@pytest.mark.parametrize("verb", ["fetch", "train", "probe", "collect", "plot", "report"])
def test_the_disk_cannot_be_written(verbs, stages, disk, verb, reliability):
    stage = stages[verb]
    folder = disk("rw") / "work"
    shutil.copytree(stage.before, folder)
    disk("ro")
    done = verbs(folder, *stage.argv, err=str(folder.parent.parent / "stderr"))
    _one_line(done)
    assert "Read-only file system" in done["err"]
    assert contents(folder) == contents(stage.before)
    disk("rw")
    assert verbs(folder, *stage.argv)["code"] == 0
    assert contents(folder) == stage.after
    reliability(f"read-only disk in {verb}")
