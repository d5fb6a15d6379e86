"""Machines with a worker each, one Prefect server on PostgreSQL and one remote store.

A machine is a home of Prefect and a store of its own. The first one runs `fairway up`, the second joins it.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

from schemas.stages import STAGES
from stages.store.remote import Remote, open_remote
from stages.store.runs import find_run
from tests.faults.conftest import STEPS, Undisturbed
from tests.faults.harness import Struck, start
from tests.faults.postgresql import PASSWORD, missing_programs, postgresql
from tests.faults.served import HEARTBEAT_SECONDS, Services

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(1500)]

LINE = "11"
READY_SECONDS = 300.0  # of a busy machine
TAKEOVER_SECONDS = 30.0


@dataclass
class Cluster(Services):
    """A server that `fairway up` started, and the machines by their names."""

    database: str = ""

    @property
    def remote(self) -> Remote:
        return open_remote((self.folder / "shared").as_uri())

    def machine(self, name: str, *options: str, **environment: str) -> Struck:
        """`fairway up` with these options on the machine; returns when it is ready."""
        own = {
            "PREFECT_HOME": str(self.folder / name / "home"),
            "FAIRWAY_STORE": str(self.store_of(name)),
            "FAIRWAY_REMOTE": (self.folder / "shared").as_uri(),
            "DO_NOT_TRACK": "1",
        }
        self.workers.append(
            start(["-m", "flows.cli", "up", "--json", *options], self.folder / "logs", **own, **environment)
        )
        machine = self.workers[-1]
        assert machine.wait_for(lambda: '"api"' in machine.output.read_text(), READY_SECONDS), machine.text()
        return machine

    def first(self) -> Struck:
        options = ("--port", str(self.port), "--heartbeat-seconds", str(HEARTBEAT_SECONDS), "--runs", "1")
        return self.machine("first", *options, FAIRWAY_DATABASE=self.database)

    def second(self) -> Struck:
        return self.machine("second", "--worker-only", "--server", self.url.removesuffix("/api"))

    def store_of(self, name: str) -> Path:
        return self.folder / name / "store"

    def run(self, run_id: str) -> Any:
        return self.call("GET", f"flow_runs/{run_id}")

    def states(self, run_id: str) -> list[tuple[str, float]]:
        """Each state that the run had, with its time in seconds since 1970, in order."""
        found = self.call("GET", f"flow_run_states/?flow_run_id={run_id}")
        return sorted(
            ((state["name"], datetime.fromisoformat(state["timestamp"]).timestamp()) for state in found),
            key=itemgetter(1),
        )

    def worker_of(self, run_id: str) -> str:
        """Name of the worker that took the run last, once one did."""
        deadline = time.monotonic() + READY_SECONDS
        while not (name := self.run(run_id)["labels"].get("prefect.worker.name")):
            assert time.monotonic() < deadline, self.state(run_id)
            time.sleep(0.5)
        return str(name)

    def blob(self, run_id: str) -> bytes:
        """From the store of the machine that ended the run; it has the report."""
        stores = [self.store_of(name) for name in ("first", "second")]
        [store] = [store for store in stores if (store / "runs" / run_id).exists()]
        return (store / find_run(store, run_id).package.folder / "model.fwz").read_bytes()

    def say(self, run_id: str) -> list[str]:
        """The lines of the run's log."""
        found = self.call(
            "POST", "logs/filter", logs={"flow_run_id": {"any_": [run_id]}}, sort="TIMESTAMP_ASC"
        )
        return [line["message"] for line in found]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if missing := missing_programs():
        pytest.skip(f"no {missing[0]}; tests/faults/postgresql.py says what to install")
    with tempfile.TemporaryDirectory(prefix="pg-") as short, postgresql(Path(short)) as database:
        found = Cluster(tmp_path_factory.mktemp("cluster"), database=database)
        try:
            found.first()
            yield found
        finally:
            for machine in reversed(found.workers):
                machine.end()


@pytest.fixture
def expected(undisturbed: Undisturbed) -> bytes:
    return (undisturbed.folder("package") / "package" / "model.fwz").read_bytes()


def test_a_machine_dies_with_its_disk_and_the_other_goes_on(
    cluster: Cluster, expected: bytes, figure: Callable[..., None]
) -> None:
    cluster.call("PATCH", "v2/concurrency_limits/tag:train", limit=2)
    busy = cluster.ask(overrides=[STEPS, "train.seed=7"])
    first = cluster.worker_of(busy)
    second = cluster.second()
    run_id = cluster.ask()
    assert cluster.worker_of(run_id) != first  # each takes one run at a time
    assert second.wait_for(lambda: _has_checkpoint_in_remote(cluster, "second"), READY_SECONDS)
    cluster.wait(run_id, name="Running")
    second.end()
    shutil.rmtree(cluster.store_of("second"))
    killed = time.time()
    assert cluster.wait(busy, 600) == "Completed"
    ended = cluster.wait(run_id, 600)
    states = cluster.states(run_id)
    queued = next(at for name, at in states if name == "AwaitingRetry")
    free = max(queued, cluster.states(busy)[-1][1])  # known lost, and the other machine free
    taken = next(at for name, at in states if name == "Running" and at > queued) - free
    whole = states[-1][1] - free
    resumed = [line for line in cluster.say(run_id) if line.startswith("going on from the checkpoint")]
    same = ended == "Completed" and cluster.blob(run_id) == expected
    told = (
        f"AwaitingRetry {queued - killed:.0f} s later, taken over by the other after {taken:.0f} s more, "
        f"{' and '.join(resumed)}, ended after {whole:.0f} s in {'the same' if same else 'OTHER'} bytes"
    )
    in_time = queued - killed <= 8 * HEARTBEAT_SECONDS and taken <= TAKEOVER_SECONDS
    met = in_time and len(resumed) == 1 and same
    figure(LINE, "a worker's machine killed while it trains, its disk removed", told, met)
    left = [task for task in _tasks(cluster, run_id) if task["state_type"] in ("RUNNING", "PENDING")]
    assert not left
    assert cluster.worker_of(run_id) == first


def test_two_equal_runs_on_two_machines_make_each_stage_once(
    cluster: Cluster, figure: Callable[..., None]
) -> None:
    second = cluster.second()
    other = [STEPS, "tokenize.corpus.max_documents=7"]  # nothing of it is stored yet
    runs = [cluster.ask(overrides=other) for _ in range(2)]
    states = [cluster.wait(run_id, 900) for run_id in runs]
    assert states == ["Completed", "Completed"]
    assert len({cluster.worker_of(run_id) for run_id in runs}) == 2
    tasks = [cluster.tasks(run_id) for run_id in runs]
    once = [stage for stage in STAGES if sorted(found[stage] for found in tasks) == ["Cached", "Completed"]]
    blobs = {cluster.blob(run_id) for run_id in runs}
    told = f"{len(once)} of {len(STAGES)} stages made by one and Cached for the other, {len(blobs)} blob"
    met = len(once) == len(STAGES) and len(blobs) == 1
    figure(LINE, "two equal runs on the workers of two machines", told, met)
    limits = cluster.call("POST", "v2/concurrency_limits/filter", limit=50)
    assert [limit["name"] for limit in limits] == ["tag:train"]
    second.end()


def test_the_password_of_the_database_lies_nowhere(cluster: Cluster) -> None:
    """Only the server has it in its environment."""
    secret = PASSWORD.encode()
    processes = [Path(f"/proc/{pid}") for pid in cluster.workers[0].pids()]
    holders = [process for process in processes if secret in (process / "environ").read_bytes()]
    commands = [(process / "cmdline").read_bytes().split(b"\0") for process in holders]
    assert commands
    assert all(b"server" in command or b"up" in command for command in commands), commands
    files = [path for path in cluster.folder.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert not [path for path in files if secret in path.read_bytes()]


def _has_checkpoint_in_remote(cluster: Cluster, name: str) -> bool:
    """Whether the training of this machine has a whole checkpoint there."""
    keys = [folder.name for folder in cluster.store_of(name).glob("work/train/*")]
    sent = [item.name for item in cluster.remote.objects("work/train/") if item.name.endswith("/manifest")]
    return any(name.startswith(f"work/train/{key}") for key in keys for name in sent)


def _tasks(cluster: Cluster, run_id: str) -> Any:
    return cluster.call("POST", "task_runs/filter", flow_runs={"id": {"any_": [run_id]}})
