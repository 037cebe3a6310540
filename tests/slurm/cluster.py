"""A SLURM cluster of two nodes with two GPUs each, and one without, on this machine, from its own folder and on free ports: nothing in /etc.

The GPUs are device files that nothing opens; SLURM hands them out as it does real ones.
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

NODES = ("n1", "n2", "c1")  # the last one has no GPU
CONF = """
ClusterName=eqbench
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A job that lost its node waits for its old credentials to expire.
AuthInfo=socket={root}/munge.socket,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
# Memory is watched once a second, and a job that uses more than it asked for is killed.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill,UsePss
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
MinJobAge=600
ReturnToService=2
KillWait=2
# So many CPUs and so much memory, whatever this machine has.
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=4 RealMemory=32000 Gres=gpu:fake:2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs=4 RealMemory=32000 Gres=gpu:fake:2
NodeName=c1 NodeHostname={host} NodeAddr=127.0.0.1 Port={c1} CPUs=4 RealMemory=32000
PartitionName=gpu Nodes=n1,n2 Default=YES MaxTime=7-0 State=UP
PartitionName=cpu Nodes=c1 MaxTime=7-0 State=UP
"""


def missing() -> list[str]:
    """The programs that this machine lacks."""
    return [
        name
        for name in ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "setpriv")
        if not shutil.which(name)
    ]


class Cluster:
    """The daemons, and what a test does to them. When this process ends, however it does, a guard ends all the rest."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.guard = subprocess.Popen(
            [sys.executable, __file__, str(root)], stdin=subprocess.PIPE, start_new_session=True
        )
        names = {"host": socket.gethostname().split(".")[0], "user": getpass.getuser(), "root": root}
        (root / "slurm.conf").write_text(
            CONF.format(**names, **dict(zip(("controller", *NODES), _ports(1 + len(NODES)), strict=True)))
        )
        gpus = [f"NodeName={node} Name=gpu Type=fake File={root}/{node}-[0-1]\n" for node in NODES[:2]]
        (root / "gres.conf").write_text("AutoDetect=off\n" + "".join(gpus))
        for node in NODES:
            (root / f"spool-{node}").mkdir()
            for index in (0, 1):
                (root / f"{node}-{index}").symlink_to(os.devnull)
        (root / "state").mkdir()
        (root / "key").write_bytes(os.urandom(128))
        (root / "key").chmod(0o600)
        # Inside a job, Snakemake's step forgets every SLURM_* variable, where the configuration is among them.
        (root / "bin").mkdir()
        (root / "bin/srun").write_text(f'#!/bin/sh\nSLURM_CONF={root}/slurm.conf exec {shutil.which("srun")} "$@"\n')
        (root / "bin/srun").chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs to know to use the cluster."""
        return {"SLURM_CONF": str(self.root / "slurm.conf"), "PATH": f"{self.root}/bin:{os.environ['PATH']}"}

    def start(self) -> None:
        files = {"key-file": "key", "socket": "munge.socket", "pid-file": "munge.pid"}
        files |= {"log-file": "munge.log", "seed-file": "munge.seed"}
        paths = [f"--{option}={self.root / name}" for option, name in files.items()]
        self._run("munged", "munged", "--foreground", "--force", *paths)
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        self.wait_until_idle()

    def start_controller(self) -> None:
        self._run("slurmctld", "slurmctld", "-D")

    def start_node(self, node: str) -> None:
        self._run(node, "slurmd", "-D", "-N", node)

    def _run(self, name: str, *command: str) -> None:
        with (self.root / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                command,
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def wait_until_idle(self) -> None:
        """Until the nodes are up and no job is left."""
        for _ in range(300):
            with contextlib.suppress(subprocess.CalledProcessError):
                if set(self.ask("sinfo", "-hN", "-o", "%T").split()) == {"idle"} and not self.jobs():
                    return
            time.sleep(0.2)
        raise TimeoutError(f"the cluster is not idle: {self.ask('sinfo', '-N')} {self.ask('squeue')}")

    def ask(self, *command: str) -> str:
        """What a command of SLURM prints."""
        return subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True, timeout=60, check=True
        ).stdout.strip()

    def jobs(self) -> dict[str, str]:
        """Job -> its node, for those that run or wait."""
        lines = self.ask("squeue", "-h", "-o", "%i %N").splitlines()
        return {line.split()[0]: line.partition(" ")[2] for line in lines}

    def stop_controller(self) -> None:
        """It saves its state first; one that is killed forgets the jobs that it started in its last seconds."""
        daemon = self.daemons.pop("slurmctld")
        daemon.terminate()
        daemon.wait(60)

    def clear(self) -> None:
        """What one test has left must not fail the next one."""
        self.ask("scancel", "--user", getpass.getuser())
        drained = [line.split()[0] for line in self.ask("sinfo", "-hN", "-t", "drain", "-o", "%N").splitlines()]
        for node in drained:
            self.ask("scontrol", "update", f"nodename={node}", "state=resume")

    def kill_node(self, node: str) -> None:
        """As if its power failed: no process of the node lives on, none can say so, and somebody notices."""
        _kill_users(self.root / f"slurmd-{node}.log")
        self.daemons.pop(node).wait()
        self.ask("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def stop(self) -> None:
        """Have the guard end it."""
        self.guard.communicate()


def _kill_users(path: Path) -> None:
    """kill -9 the processes that have this file, or one below this folder, open, and all that they started."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(Path(file.path).is_relative_to(path) for file in process.open_files()):
                for one in (process, *process.children(recursive=True)):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.kill()


def _ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _guard(root: Path) -> None:
    """Wait until the process at the other end of standard input is gone; then kill what lives on of the cluster."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    sys.stdin.read()
    for _ in range(2):  # what was just being started has its log open by now
        _kill_users(root)
        time.sleep(0.2)
    shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    _guard(Path(sys.argv[1]))
