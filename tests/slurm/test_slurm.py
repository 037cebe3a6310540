"""The workflow on a real SLURM cluster: what jobs are given, and what time limits, kills, dead nodes and full disks cost."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cluster as slurm
import pandas as pd
import psutil
import pytest
from night import ON_CLUSTER, Site, until

BROKEN = "overflowing/s0/final/hflip/orbit"


def minutes(limit: str) -> int:
    """Of what squeue prints: [[days-]hours:]minutes:seconds."""
    days, _, clock = limit.rpartition("-")
    hours, mins, _ = [0, *map(int, clock.split(":"))][-3:]
    return int(days or 0) * 1440 + hours * 60 + mins


@pytest.fixture(scope="module")
def stormy(undisturbed, cluster, tmp_path_factory) -> Site:
    """The whole suite from nothing, while one part hangs, one needs too much memory, and one is cancelled."""
    folder = tmp_path_factory.mktemp("stormy")
    shutil.copytree(undisturbed.folder / "conf", folder / "conf")
    shutil.copy(undisturbed.folder / "overflowing.safetensors", folder)
    site = Site(folder, tmp_path_factory.mktemp("witness"), cluster.environment)
    site.mischief("final+hflip", "stall 1")
    site.mischief("final+c4", "hog 1.4")
    site.mischief("init+hflip", "stall 0")
    run = site.start(*ON_CLUSTER)
    until(lambda: site.notes("init+hflip") and "s0/final/hflip/consistency" in str(site.cells()))
    site.before = site.cells()
    cluster.ask("scancel", site.notes("init+hflip")[0]["job"])
    # Time limits are whole minutes: this one ends now.
    cluster.ask("scontrol", "update", f"jobid={site.notes('final+hflip')[0]['job']}", "endtime=now+1")
    assert site.end(run) == 0, site.said
    return site


def test_a_cluster_gives_what_one_machine_gives(stormy, undisturbed, reliability):
    assert stormy.results() == undisturbed.results()
    for table in ("results.csv", "leaderboard.csv"):
        assert (stormy.folder / "reports/night" / table).stat().st_size > 0
    reliability("suite on a cluster with faults: the results of one machine", cells=len(stormy.results()))


def test_a_job_has_the_gpu_that_it_was_given_and_no_other(stormy, reliability):
    ends = {note["job"]: note["time"] for note in stormy.notes(event="end")}
    starts = [note for note in stormy.notes() if note["job"]]
    assert {note["gpu"] for note in starts} <= {"0", "1"}
    assert {note["gpus"] for note in starts} == {"gres:gpu:1"}
    runs = [(note["node"], note["gpu"], note["time"], ends.get(note["job"], note["time"])) for note in starts]
    beside = 0
    for one, two in itertools.combinations(runs, 2):
        if one[0] == two[0] and max(one[2], two[2]) < min(one[3], two[3]):
            beside += 1
            assert one[1] != two[1]
    assert beside > 0  # two jobs on one node did run at the same time
    reliability("two jobs on a node with two GPUs", tried=beside)


def test_jobs_are_offline_and_fetching_is_not(stormy, reliability):
    ends = stormy.notes(event="end")
    assert {note["offline"] for note in ends if note["job"]} == {True}
    assert [note["offline"] for note in ends if note["job"] is None and note["offline"] is not None] == [False]  # fetch
    reliability("compute nodes without a network", tried=sum(bool(note["job"]) for note in ends))


def test_a_time_limit_costs_one_cell_and_asks_for_more(stormy, reliability):
    first, second = stormy.notes("final+hflip")
    assert minutes(second["limit"]) > minutes(first["limit"])
    assert first["job"] != second["job"]
    assert "status is: 'TIMEOUT'" in stormy.said
    assert any("final/hflip/consistency" in cell for cell in stormy.before)
    assert stormy.lost() == 0
    log = (stormy.folder / "data/logs/probe/night/resnet_digits/s0/final/hflip.log").read_text()
    assert "1 kept, 1 ok" in log
    reliability("time limit in the middle of a part", bytes_lost=stormy.lost())


def test_a_kill_for_memory_asks_for_more(stormy, reliability):
    first, second = (int(note["memory"].removesuffix("M")) for note in stormy.notes("final+c4"))
    assert second > 1.4 * first
    (log,) = stormy.folder.glob("data/logs/slurm/rule_probe/night_resnet_digits_s0_final_c4/*.log")
    assert "exceeded memory limit" in log.read_text()
    reliability("killed for memory", bytes_lost=stormy.lost())


def test_a_cancelled_job_starts_again(stormy, reliability):
    first, second = stormy.notes("init+hflip")
    assert "status is: 'CANCELLED'" in stormy.said
    (log,) = stormy.folder.glob("data/logs/slurm/rule_probe/night_resnet_digits_s0_init_hflip/*.log")
    assert log.stem == first["job"] != second["job"]  # the log of the job that died, and only that
    assert str(log) in stormy.said
    reliability("scancel of one job", bytes_lost=stormy.lost())


def test_a_cell_that_always_fails_is_a_row(stormy, reliability):
    result = stormy.results()[BROKEN]
    assert result["status"] == "failed"
    assert "not finite" in result["reason"]
    assert (
        sum(note["job"] is not None for note in stormy.notes(pattern="probe+overflowing*")) == 1
    )  # it is not tried again
    row = pd.read_csv(stormy.folder / "reports/night/coverage.csv").query("model == 'overflowing'")
    assert row["orbit"].tolist() == ["failed"]
    reliability("a cell that always fails", bytes_lost=stormy.lost())


def test_a_node_that_dies_costs_its_jobs_a_new_start_elsewhere(site, undisturbed, cluster, reliability):
    site.forget("init/hflip", "final/hflip")
    site.mischief("init+hflip", "stall 1")
    site.before = site.cells()
    run = site.start(*ON_CLUSTER)
    until(lambda: "s0/init/hflip/consistency" in str(site.cells()) and "s0/final/hflip/orbit" in str(site.cells()))
    site.before = site.cells()
    node = site.notes("init+hflip")[0]["node"]
    cluster.kill_node(node)
    try:
        assert site.end(run) == 0, site.said
    finally:
        cluster.start_node(node)
    first, second = site.notes("init+hflip")
    assert (first["job"], first["node"] != second["node"]) == (second["job"], True)
    assert site.results() == undisturbed.results()
    assert site.lost() == 0
    reliability("a node dies", bytes_lost=site.lost())


def test_a_controller_is_restarted(site, undisturbed, cluster, reliability):
    site.forget("init/hflip")
    site.mischief("init+hflip", "wait 5")
    run = site.start(*ON_CLUSTER)
    until(lambda: site.notes("init+hflip"))
    cluster.stop_controller()
    time.sleep(6)  # commands of SLURM ask again for 10 seconds
    cluster.start_controller()
    assert site.end(run) == 0, site.said
    assert len(site.notes("init+hflip")) == 1
    assert site.results() == undisturbed.results()
    reliability("controller restarted")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_snakemake_is_stopped_and_started_again(site, undisturbed, cluster, signum, reliability):
    """An interrupt cancels its jobs; a kill leaves them running, and the next Snakemake runs the same parts beside them."""
    site.forget("init/hflip", "final/hflip")
    site.mischief("init+hflip", "wait 15")
    run = site.start(*ON_CLUSTER)
    until(lambda: site.notes("init+hflip") and "s0/final/hflip/orbit" in str(site.cells()))
    site.before = site.cells()
    os.killpg(run.pid, signum)
    run.wait(120)
    if signum == signal.SIGINT:
        until(lambda: not cluster.jobs(), 30)
    else:
        assert cluster.jobs()
    assert site.run(*ON_CLUSTER) == 0, site.said
    until(lambda: not cluster.jobs())
    assert site.results() == undisturbed.results()
    assert site.lost() == 0
    reliability(f"{signum.name} of Snakemake, jobs on the cluster", bytes_lost=site.lost())


def test_a_full_disk(site, undisturbed, reliability):
    site.forget("init/hflip")
    part = site.folder / "data/cells/night/resnet_digits/s0/init/hflip"
    part.mkdir()
    site.before = site.cells()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(part)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        filler = part / ".filler"
        with filler.open("wb") as file:
            file.write(b"x" * (508 << 10))
        assert site.run(*ON_CLUSTER, "--retries", "0") == 1
        assert "No space left on device" in site.logs()
        assert not list(part.glob("[!.]*"))
        filler.unlink()
        assert site.run(*ON_CLUSTER) == 0, site.said
        assert site.results() == undisturbed.results()
        assert site.lost() == 0
    finally:
        subprocess.run(["umount", str(part)], check=True)
    reliability("full disk under the results", bytes_lost=0)


def test_a_partition_without_gpus(site, undisturbed, reliability):
    site.forget("final/c4")
    where = ["--default-resources", "slurm_partition=cpu", "--set-resources", "train:gpu=0", "probe:gpu=0"]
    assert site.run(*ON_CLUSTER, *where) == 0, site.said
    (start,) = site.notes("final+c4")
    assert (start["node"], start["gpu"], start["gpus"]) == ("c1", None, "N/A")
    assert site.results() == undisturbed.results()
    reliability("partition without GPUs")


def test_a_job_refuses_a_configuration_that_changed_while_it_waited(site, undisturbed, cluster, reliability):
    site.forget("init/hflip")
    suite = site.folder / "conf/suite/night.yaml"
    before = suite.read_text()
    cluster.ask("scontrol", "update", "nodename=n1,n2", "state=drain", "reason=test")
    try:
        run = site.start(*ON_CLUSTER, "--retries", "0")
        until(cluster.jobs)
        suite.write_text(before.replace("orbit.resamples=100", "orbit.resamples=200"))
    finally:
        cluster.ask("scontrol", "update", "nodename=n1,n2", "state=resume")
    assert site.end(run) == 1
    assert "conf/ changed between planning and start of this job" in site.logs()
    assert not site.notes("init+hflip")
    suite.write_text(before)
    assert site.run(*ON_CLUSTER) == 0, site.said
    assert site.results() == undisturbed.results()
    reliability("configuration changed between submission and start")


def test_tests_that_are_killed_leave_no_cluster(cluster, tmp_path, reliability):
    root = tmp_path / "cluster"
    root.mkdir()
    code = (
        "import os, sys, pathlib, cluster\nmade = cluster.Cluster(pathlib.Path(sys.argv[1]))\nmade.start()\n"
        "made.ask('sbatch', '--output=/dev/null', '--wrap', 'sleep 1000')\nos.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(root)], cwd=Path(slurm.__file__).parent)
    assert done.returncode == -signal.SIGKILL

    def left():
        return [p for p in psutil.process_iter(["cmdline"]) if str(root) in " ".join(p.info["cmdline"] or [])]

    until(lambda: not root.exists() and not left(), 20)  # who removes the folder ends after it
    reliability("tests killed: nothing of their cluster stays")
