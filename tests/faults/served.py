"""A Prefect server and workers for tests, and what they are asked for."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from flows.server.environment import is_healthy
from flows.server.settings import SETTINGS
from stages.store.runs import find_run
from tests.faults.conftest import STEPS
from tests.faults.harness import ROOT, Struck, start
from tests.ports import free_port

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
                    return answer.raise_for_status().json() if answer.content else None
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

    def wait(self, run_id: str, seconds: float = 240, name: str | None = None) -> str:
        """Name of the state in which the run ended, or of the state `name` once it has that."""
        deadline = time.monotonic() + seconds
        while (state := self.state(run_id))["type"] not in ENDED and state["name"] != name:
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
