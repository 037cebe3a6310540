"""A cluster for the tests of this folder, and a suite to run on it."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cluster as slurm
import pytest
from night import FILES, ROOT, WEIGHTS, Site


@pytest.fixture(scope="session")
def cluster() -> Iterator[slurm.Cluster]:
    if missing := slurm.missing():
        pytest.skip(f"no SLURM here: {', '.join(missing)} not installed")
    if os.geteuid() != 0:
        pytest.skip("SLURM's daemons are started as root")
    pytest.importorskip("snakemake_executor_plugin_slurm")
    made = slurm.Cluster(Path(tempfile.mkdtemp(prefix="eqbench-slurm-")))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def undisturbed(cluster, tmp_path_factory) -> Site:
    """The suite, run on this machine without a cluster and without a fault."""
    folder = tmp_path_factory.mktemp("undisturbed")
    site = Site(folder, folder / "witness", {})
    site.witness.mkdir()
    shutil.copytree(ROOT / "conf", folder / "conf")
    for name, text in FILES.items():
        (folder / "conf" / name).write_text(text)
    subprocess.run([sys.executable, "-c", WEIGHTS], cwd=folder, check=True)
    parts = [f"resnet_digits/s0/{state}/{group}" for state in ("init", "final") for group in ("hflip", "c4")]
    site.targets = [f"data/parts/night/{part}.json" for part in (*parts, "overflowing/s0/final/hflip")]
    assert site.run("--cores", "2") == 0, site.said
    return site


@pytest.fixture
def site(undisturbed, cluster, tmp_path) -> Iterator[Site]:
    """A copy of it, to lose cells of and to make them again on the cluster."""
    shutil.copytree(undisturbed.folder, tmp_path / "run")
    made = Site(tmp_path / "run", tmp_path / "witness", cluster.environment)
    made.witness.mkdir()
    cluster.wait_until_idle()
    yield made
    cluster.clear()
