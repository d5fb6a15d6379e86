"""A real Slurm cluster for tests: the controller on this machine, a node on each of two others.

    apt-get install --no-install-recommends slurmctld slurmd slurm-client munge

Needs root, and two machines of tests/faults/machines.py.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.machines import HERE, Machine
from tests.ports import free_port

PROGRAMS = ("srun", "sinfo", "slurmctld", "slurmd", "munged", "mungekey")
_SECONDS = 60.0


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


@dataclass(frozen=True)
class Slurm:
    """A running cluster, and what a user sets to reach it."""

    folder: Path
    environment: dict[str, str]
    start_node: Callable[[Machine], None]

    def states(self) -> dict[str, str]:
        """Node -> its state, as idle, allocated or down."""
        command = ["sinfo", "--noheader", "--Node", "--format=%N %T"]
        told = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **self.environment})
        return dict(line.split() for line in told.stdout.splitlines())

    def wait_until_idle(self) -> None:
        """Raises RuntimeError with the daemons' last lines."""
        deadline = time.monotonic() + _SECONDS
        while set(self.states().values()) != {"idle"}:
            if time.monotonic() > deadline:
                logs = {
                    path.name: path.read_text(errors="replace")[-800:] for path in self.folder.glob("*.log")
                }
                raise RuntimeError(f"{self.states()}; {logs}")
            time.sleep(0.2)


@contextmanager
def slurm_cluster(folder: Path, machines: Sequence[Machine]) -> Iterator[Slurm]:
    """Start it, and end it. `folder` must have a short path, because a socket lies in it.

    Raises RuntimeError when the cluster does not start.
    """
    folder.chmod(0o755)
    nodes = "\n".join(f"NodeName={node.name} NodeAddr={node.address} CPUs=2" for node in machines)
    config = folder / "slurm.conf"
    config.write_text(
        _CONFIG.format(
            folder=folder,
            host=socket.gethostname().split(".")[0],
            here=HERE,
            controller=free_port(),
            node=free_port(),
            nodes=nodes,
        )
    )
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    (folder / "state").mkdir()
    environment = {"SLURM_CONF": str(config)}
    started = list[subprocess.Popen]()

    def start(name: str, *command: str) -> None:
        with (folder / f"{name}.log").open("ab") as log:
            started.append(
                subprocess.Popen(
                    command,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env={**os.environ, **environment, "PATH": _path()},
                )
            )

    def start_node(machine: Machine) -> None:
        start(machine.name, *machine.prefix, "slurmd", "-D", "-N", machine.name)

    try:
        _start_munge(folder, start)
        start("slurmctld", "slurmctld", "-D")
        for machine in machines:
            start_node(machine)
        slurm = Slurm(folder, environment, start_node)
        slurm.wait_until_idle()
        yield slurm
    finally:
        for machine in machines:
            machine.kill()  # slurmstepd has left the group of slurmd
        for process in reversed(started):
            process.kill()
            process.wait()


def _start_munge(folder: Path, start: Callable[..., None]) -> None:
    """By munge Slurm's programs know one another; this one has a key of its own."""
    key = folder / "munge.key"
    subprocess.run(
        ["mungekey", "--create", f"--keyfile={key}"], check=True, env={**os.environ, "PATH": _path()}
    )
    files = {name: folder / f"munge.{name}" for name in ("socket", "pid", "log", "seed")}
    start(
        "munged",
        "munged",
        "--foreground",
        "--force",
        f"--key-file={key}",
        f"--socket={files['socket']}",
        f"--pid-file={files['pid']}",
        f"--log-file={files['log']}",
        f"--seed-file={files['seed']}",
    )
    deadline = time.monotonic() + _SECONDS
    while not files["socket"].exists():
        if time.monotonic() > deadline:
            raise RuntimeError((folder / "munged.log").read_text(errors="replace")[-2000:])
        time.sleep(0.05)


def _path() -> str:
    """Daemons lie where only root has its programs."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


_CONFIG = """\
ClusterName=fairway
SlurmctldHost={host}({here})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldPort={controller}
SlurmdPort={node}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
{nodes}
PartitionName=all Nodes=ALL Default=YES State=UP
"""
