"""Training on a real Slurm cluster of two machines, and what becomes of it when a part is lost.

The machines are network namespaces (tests/faults/machines.py), the daemons Debian's (tests/faults/slurm.py).
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from stages.processes import slurm as launcher
from stages.processes.launch import ChildFailedError
from tests.faults.harness import Struck, start
from tests.faults.machines import Machine, two_machines
from tests.faults.nodes import checkpoints, listed, nodes_of, wait_until, weights_of
from tests.faults.slurm import Slurm, missing_programs, slurm_cluster

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

LINE = "11"
GROUP_TIMEOUT_SECONDS = 10.0
BUSY_SECONDS = 20.0  # for processes to end on a machine with other work
SHORT = ["train.schedule.max_steps=120", "train.compute.threads_per_process=1"]
TWO_MACHINES = [*SHORT, "train.compute.num_nodes=2"]
OPTIONS = {"launcher": "slurm", "interface": "eth0", "group_timeout_seconds": GROUP_TIMEOUT_SECONDS}


@dataclass(frozen=True)
class Cluster:
    machines: tuple[Machine, Machine]
    slurm: Slurm

    def repair(self) -> None:
        """Cables in, daemons on, nodes idle."""
        for machine in self.machines:
            machine.plug_cable()
            if not machine.pids():
                self.slurm.start_node(machine)
        self.slurm.wait_until_idle()


@pytest.fixture(scope="module")
def two() -> Iterator[Cluster]:
    if missing := missing_programs():
        pytest.skip(f"no {missing[0]}; tests/faults/slurm.py says what to install")
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as folder,
        two_machines() as machines,
        slurm_cluster(Path(folder), machines) as slurm,
    ):
        yield Cluster(machines, slurm)


@pytest.fixture
def cluster(two: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    two.repair()
    for name, value in two.slurm.environment.items():
        monkeypatch.setenv(name, value)
    return two


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """sha256 of the weights that two processes of one machine train."""
    store = tmp_path_factory.mktemp("one machine") / "store"
    return weights_of(store, [*SHORT, "train.compute.num_processes=2"])[0]


def seconds_to_the_end(store: Path, strike: Callable[[], object]) -> tuple[float, float]:
    """From the strike, at the first checkpoint, until no process of the training runs on any machine, and
    until the try has failed.
    """
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(weights_of, store, TWO_MACHINES, **OPTIONS)
        wait_until(lambda: checkpoints(store) or run.done())
        assert not run.done()
        strike()
        began = time.monotonic()
        wait_until(lambda: not ranks_of(store))
        gone = time.monotonic() - began
        with pytest.raises(ChildFailedError):
            run.result()
        return gone, time.monotonic() - began


def ranks_of(store: Path) -> list[psutil.Process]:
    return [process for process in nodes_of(store) if "stages.training.worker" in process.info["cmdline"]]


def check_the_next_try(
    store: Path, cluster: Cluster, expected: str, figure: Callable[..., None], after: str
) -> None:
    cluster.repair()
    sha256, resumed = weights_of(store, TWO_MACHINES, **OPTIONS)
    same = sha256 == expected
    told = f"went on from step {listed(resumed)}, weights as of two processes on one machine: {same}"
    figure(LINE, f"Slurm, after {after}: the same run again", told, same and len(resumed) > 0)


def test_two_machines_train_to_the_bytes_of_one(
    cluster: Cluster, expected: str, tmp_path: Path, figure: Callable[..., None]
) -> None:
    sha256, _ = weights_of(tmp_path / "store", TWO_MACHINES, **OPTIONS)
    told = f"weights as of two processes on one machine: {sha256 == expected}"
    figure(LINE, "Slurm: one training on two machines", told, sha256 == expected)
    assert set(cluster.slurm.states().values()) <= {"idle", "completing"}  # the allocation is given back


def test_a_process_is_killed(
    cluster: Cluster, expected: str, tmp_path: Path, figure: Callable[..., None]
) -> None:
    store = tmp_path / "store"
    gone, ended = seconds_to_the_end(store, lambda: ranks_of(store)[0].kill())
    told = f"no process left after {gone:.1f} s, the try failed after {ended:.1f} s"
    figure(LINE, "Slurm: one of two processes killed (SIGKILL)", told, ended < BUSY_SECONDS)
    check_the_next_try(store, cluster, expected, figure, "a killed process")


@pytest.mark.parametrize("number", [0, 1])
def test_a_machine_is_killed(
    number: int, cluster: Cluster, expected: str, tmp_path: Path, figure: Callable[..., None]
) -> None:
    """All its processes die, slurmd included; its kernel still closes their connections."""
    gone, ended = seconds_to_the_end(tmp_path / "store", cluster.machines[number].kill)
    which = ("the first machine, which has the rendezvous,", "the second machine")[number]
    told = f"no process left after {gone:.1f} s, the try failed after {ended:.1f} s"
    met = gone < BUSY_SECONDS and ended < launcher.WAIT_SECONDS + BUSY_SECONDS
    figure(LINE, f"Slurm: {which} killed (SIGKILL to all of it)", told, met)
    check_the_next_try(tmp_path / "store", cluster, expected, figure, f"machine {number} was killed")


@pytest.mark.parametrize("number", [0, 1])
def test_a_machine_loses_its_power(
    number: int, cluster: Cluster, expected: str, tmp_path: Path, figure: Callable[..., None]
) -> None:
    machine = cluster.machines[number]

    def strike() -> None:
        machine.pull_cable()  # first, so that nobody hears of the deaths
        machine.kill()

    gone, ended = seconds_to_the_end(tmp_path / "store", strike)
    told = f"no process left after {gone:.1f} s, the try failed after {ended:.1f} s"
    met = ended < GROUP_TIMEOUT_SECONDS + launcher.WAIT_SECONDS + BUSY_SECONDS
    done = f"Slurm: machine {number} off without a word, --group-timeout {GROUP_TIMEOUT_SECONDS:.0f}"
    figure(LINE, done, told, met)
    check_the_next_try(tmp_path / "store", cluster, expected, figure, f"machine {number} lost its power")


def test_a_cable_is_pulled(
    cluster: Cluster, expected: str, tmp_path: Path, figure: Callable[..., None]
) -> None:
    gone, ended = seconds_to_the_end(tmp_path / "store", cluster.machines[0].pull_cable)
    told = f"no process left after {gone:.1f} s on either side, the try failed after {ended:.1f} s"
    done = f"Slurm: the cable of a machine pulled, --group-timeout {GROUP_TIMEOUT_SECONDS:.0f}"
    figure(LINE, done, told, ended < GROUP_TIMEOUT_SECONDS + launcher.WAIT_SECONDS + BUSY_SECONDS)
    check_the_next_try(tmp_path / "store", cluster, expected, figure, "the cable was plugged in")


def launched(store: Path, logs: Path) -> Struck:
    """A launcher in a process of its own, once its training has written a checkpoint."""
    code = (
        "import sys; from tests.faults.test_slurm import *; "
        "weights_of(Path(sys.argv[1]), TWO_MACHINES, **OPTIONS)"
    )
    run = start(["-c", code, str(store)], logs)
    assert run.wait_for(lambda: checkpoints(store)), run.text()[-2000:]
    return run


def test_the_launcher_is_asked_to_end(
    cluster: Cluster, expected: str, tmp_path: Path, figure: Callable[..., None]
) -> None:
    run = launched(tmp_path / "store", tmp_path / "logs")
    began = time.monotonic()
    run.process.terminate()
    wait_until(lambda: not ranks_of(tmp_path / "store"))
    gone = time.monotonic() - began
    run.process.wait(60)
    done = "Slurm: the launcher gets SIGTERM"
    figure(LINE, done, f"no process left after {gone:.1f} s", gone < BUSY_SECONDS)
    check_the_next_try(tmp_path / "store", cluster, expected, figure, "the launcher got SIGTERM")


def test_the_launching_machine_is_lost(
    cluster: Cluster, expected: str, tmp_path: Path, figure: Callable[..., None]
) -> None:
    """srun is killed too, so that Slurm's tasks run on and hold the nodes."""
    store = tmp_path / "store"
    run = launched(store, tmp_path / "logs")
    here = [psutil.Process(run.process.pid), *psutil.Process(run.process.pid).children(recursive=True)]
    for process in here:
        process.suspend()  # none may still do anything about the end of another
    for process in here:
        process.kill()
    run.process.wait(60)
    late = ranks_of(store)
    sha256, resumed = weights_of(store, TWO_MACHINES, **OPTIONS)
    same = sha256 == expected
    told = (
        f"{len(late)} processes of the first try ran on; "
        f"then from step {listed(resumed)} the same bytes: {same}"
    )
    met = len(late) >= 2 and same and not [process for process in late if process.is_running()]
    figure(LINE, "Slurm: the launcher and srun killed (SIGKILL), the same run again at once", told, met)
