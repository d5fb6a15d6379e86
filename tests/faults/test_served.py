"""Server and workers as services: killed in the middle of a run, and two workers that are asked for the
same.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.server.addresses import free_port
from flows.server.environment import SETTINGS, is_healthy
from schemas.stages import STAGES
from stages.store.runs import find_run
from tests.faults.conftest import STEPS, Undisturbed
from tests.faults.harness import ROOT, Struck, start

pytestmark = [pytest.mark.faults, pytest.mark.slow]

HEARTBEAT_SECONDS = 30
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass
class Services:
    """A server, prepared and with the deployments of prefect.yaml, and the workers started on it."""

    folder: Path
    port: int = field(default_factory=free_port)
    server: Struck = field(init=False)
    workers: list[Struck] = field(default_factory=list)

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def environment(self) -> dict[str, str]:
        return {
            **SETTINGS,
            "PREFECT_HOME": str(self.folder / "home"),
            "PREFECT_API_URL": self.url,
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "FAIRWAY_STORE": str(self.store),
            "DO_NOT_TRACK": "1",
        }

    def start_server(self) -> None:
        self.server = start(
            ["-m", "prefect", "server", "start", "--port", str(self.port)],
            self.folder / "logs",
            **self.environment,
        )
        assert self.server.wait_for(lambda: is_healthy(self.url))

    def prepare(self) -> None:
        for command in (["-m", "flows.server"], ["-m", "prefect", "--no-prompt", "deploy", "--all"]):
            environment = {**os.environ, **self.environment}
            subprocess.run(
                [sys.executable, *command],
                cwd=ROOT,
                env=environment,
                check=True,
                capture_output=True,
                stdin=subprocess.DEVNULL,
            )

    def start_worker(self, name: str) -> Struck:
        command = [
            "-m",
            "prefect",
            "worker",
            "start",
            "--pool",
            "fairway",
            "--type",
            "process",
            "--name",
            name,
            "--limit",
            "1",
        ]
        self.workers.append(start(command, self.folder / "logs", **self.environment))
        return self.workers[-1]

    def call(self, method: str, path: str, **body: Any) -> Any:
        """The API's answer; asked again while the server is away or busy, as Prefect's own client does."""
        for _ in range(60):
            try:
                answer = httpx.request(method, f"{self.url}/{path}", json=body or None, timeout=30)
                if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    return answer.raise_for_status().json()
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        raise TimeoutError(f"{self.url}/{path} did not answer")

    def ask(self, **parameters: Any) -> str:
        deployment = self.call("GET", "deployments/name/pipeline/pipeline")["id"]
        options = {"checkpoint_every_seconds": 0.5}
        asked = {"preset": "smoke", "overrides": [STEPS], "options": options, **parameters}
        return str(self.call("POST", f"deployments/{deployment}/create_flow_run", parameters=asked)["id"])

    def state(self, run_id: str) -> dict[str, Any]:
        return self.call("GET", f"flow_runs/{run_id}")["state"]

    def wait(self, run_id: str, seconds: float = 240) -> str:
        deadline = time.monotonic() + seconds
        while (state := self.state(run_id))["type"] not in ENDED:
            assert time.monotonic() < deadline, (
                f"still {state['name']}; {[worker.text()[-1500:] for worker in self.workers]}"
            )
            time.sleep(0.5)
        return str(state["name"])

    def tasks(self, run_id: str) -> dict[str, str]:
        """State names of the task runs by stage, once all have ended: they reach the server as events."""
        deadline = time.monotonic() + 30
        while True:
            found = self.call("POST", "task_runs/filter", flow_runs={"id": {"any_": [run_id]}})
            if all(task["state_type"] in ENDED for task in found) or time.monotonic() > deadline:
                return {task["name"].split("-")[0]: task["state_name"] for task in found}
            time.sleep(0.3)

    def trains(self) -> bool:
        deadline = time.monotonic() + 120
        while not list(self.store.glob("work/train/*/checkpoints/*.json")) and time.monotonic() < deadline:
            time.sleep(0.1)
        return bool(list(self.store.glob("work/train/*/checkpoints/*.json")))

    def blob(self, run_id: str) -> bytes:
        return (self.store / find_run(self.store, run_id).package.folder / "model.fwz").read_bytes()


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    served = Services(tmp_path)
    served.start_server()
    served.prepare()
    try:
        yield served
    finally:
        for struck in [*served.workers, served.server]:
            struck.end()


@pytest.fixture
def expected(undisturbed: Undisturbed) -> bytes:
    return (undisturbed.folder("package") / "package" / "model.fwz").read_bytes()


def test_the_server_killed_and_started_again(
    services: Services, expected: bytes, figure: Callable[..., None]
) -> None:
    services.start_worker("one")
    run_id = services.ask()
    assert services.trains()
    services.server.end()
    time.sleep(5)
    services.start_server()
    state = services.wait(run_id)
    same = state == "Completed" and services.blob(run_id) == expected
    tasks = services.tasks(run_id)
    made = sum(name == "Completed" for name in tasks.values())
    told = f"the run ended {state}, blob {'identical' if same else 'differs'}, {made} stages made"
    figure(
        "1",
        "the server killed while a worker's run trains, and started again after 5 s",
        told,
        same and len(tasks) == len(STAGES),
    )


def test_the_worker_killed_with_its_run(
    services: Services, expected: bytes, figure: Callable[..., None]
) -> None:
    worker = services.start_worker("one")
    run_id = services.ask()
    assert services.trains()
    time.sleep(1)  # a heartbeat is there
    worker.end()
    began = time.monotonic()
    state = services.wait(run_id, 8 * HEARTBEAT_SECONDS)
    seconds = time.monotonic() - began
    services.start_worker("one")
    again = services.ask()
    resumed = services.wait(again) == "Completed" and services.blob(again) == expected
    told = (
        f"{state} {seconds:.0f} s later; asked for again, its blob is {'identical' if resumed else 'another'}"
    )
    figure(
        "1",
        f"worker and run killed, the server alive (a heartbeat every {HEARTBEAT_SECONDS} s)",
        told,
        state == "Crashed" and resumed,
    )


def test_only_the_worker_killed(services: Services, expected: bytes, figure: Callable[..., None]) -> None:
    worker = services.start_worker("one")
    run_id = services.ask()
    assert services.trains()
    os.kill(worker.process.pid, signal.SIGKILL)
    began = time.monotonic()
    state = services.wait(run_id)
    seconds = time.monotonic() - began
    left = worker.gone_after(30) is None
    services.start_worker("one")
    again = services.ask()
    resumed = services.wait(again) == "Completed" and services.blob(again) == expected
    told = (
        f"its run ended {state} {seconds:.0f} s later, {'a process' if left else 'no process'} "
        "left; asked for again, its blob is "
    )
    told += "identical" if resumed else "another"
    figure("1", "only the worker killed", told, state in ("Crashed", "Completed") and not left and resumed)


def test_two_workers_asked_for_the_same_train_once(
    services: Services, expected: bytes, figure: Callable[..., None]
) -> None:
    services.start_worker("one")
    services.start_worker("two")
    runs = [services.ask(), services.ask()]
    states = [services.wait(run_id) for run_id in runs]
    trained = sorted(services.tasks(run_id)["train"] for run_id in runs)
    same = states == ["Completed"] * 2 and all(services.blob(run_id) == expected for run_id in runs)
    workers = {
        json.dumps(services.call("GET", f"flow_runs/{run_id}")["infrastructure_pid"]) for run_id in runs
    }
    told = (
        f"training: {' and '.join(trained)}; {len(workers)} processes; blobs "
        f"{'identical' if same else 'differ'}"
    )
    met = trained == ["Cached", "Completed"] and len(workers) == 2 and same
    figure("4", "two equal deployment runs on two workers at once", told, met)
