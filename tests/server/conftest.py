"""A real `fairway up` on a port and in a home of its own, spoken to over its HTTP API, as the browser
does.
"""

import json
import os
import re
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

from tests.ports import free_ports

ROOT = Path(__file__).parents[2]
FAIRWAY = Path(sys.executable).with_name("fairway")
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


class _Patient(httpx.HTTPTransport):
    """Tries again, as Prefect's own client does: when the server says that SQLite was busy, and when uvicorn
    closes a connection in use.
    """

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        for _ in range(20):
            try:
                answer = super().handle_request(request)
            except (httpx.ReadError, httpx.RemoteProtocolError):
                continue
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                return answer
            answer.close()
            time.sleep(0.5)
        return super().handle_request(request)


@dataclass
class Served:
    """A running `fairway up`; without `home`, Prefect's files lie where it puts them by itself."""

    port: int
    home: Path | None
    store: Path
    program: Path = FAIRWAY
    working_folder: Path = ROOT
    options: tuple[str, ...] = ()
    process: Any = None
    api: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.api = httpx.Client(base_url=f"{self.url}/api", timeout=30, transport=_Patient())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        clean = {
            name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "FAIRWAY_"))
        }
        return {
            **clean,
            **({} if self.home is None else {"PREFECT_HOME": str(self.home)}),
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
        }

    def start(self) -> float:
        """Bring everything up; returns the seconds that took."""
        began = time.monotonic()
        command = [
            str(self.program),
            "up",
            "--port",
            str(self.port),
            "--store",
            str(self.store),
            "--heartbeat-seconds",
            "30",
            "--json",
            *self.options,
        ]
        self.process = subprocess.Popen(
            command,
            cwd=self.working_folder,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment,
            start_new_session=True,
        )
        said = ""
        for line in self.process.stdout:
            said += line
            if line.startswith("}"):
                break
        assert json.loads(said)["ui"] == self.url
        return time.monotonic() - began

    def stop(self, number: int = signal.SIGINT) -> float:
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(60)
        return time.monotonic() - began

    def processes(self, *words: str) -> list[str]:
        """Command lines of processes that carry this server's store in their environment, and all `words`."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment = (folder / "environ").read_bytes().split(b"\0")
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if (
                line
                and f"FAIRWAY_STORE={self.store}".encode() in environment
                and all(word in line for word in words)
            ):
                found.append(line)
        return found

    def deployment(self, name: str) -> dict[str, Any]:
        return self.api.get(f"/deployments/name/{name}/{name}").raise_for_status().json()

    def start_run(self, name: str, **parameters: Any) -> str:
        answer = self.api.post(
            f"/deployments/{self.deployment(name)['id']}/create_flow_run", json={"parameters": parameters}
        )
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def run(self, run_id: str) -> dict[str, Any]:
        return self.api.get(f"/flow_runs/{run_id}").raise_for_status().json()

    def wait(
        self, run_id: str, seconds: float = 150, watch: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """The run once it has ended; `watch` is called all the while."""
        deadline = time.monotonic() + seconds
        while (run := self.run(run_id))["state_type"] not in ENDED:
            watch()
            assert time.monotonic() < deadline, (
                f"{run['name']} is still {run['state_name']}: {self.logs(run_id)[-5:]}"
            )
            time.sleep(0.3)
        # Task states travel as events and may arrive after the flow's own.
        while (
            any(task["state_type"] not in ENDED for task in self.tasks(run_id).values())
            and time.monotonic() < deadline
        ):
            time.sleep(0.1)
        return run

    def tasks(self, *run_ids: str) -> dict[str, dict[str, Any]]:
        """Task runs by stage."""
        found = (
            self.api.post("/task_runs/filter", json={"flow_runs": {"id": {"any_": list(run_ids)}}})
            .raise_for_status()
            .json()
        )
        return {task["name"].split("-")[0]: task for task in found}

    def subflows(self, run_id: str) -> list[dict[str, Any]]:
        return (
            self.api.post("/flow_runs/filter", json={"flow_runs": {"parent_flow_run_id": {"any_": [run_id]}}})
            .raise_for_status()
            .json()
        )

    def artifacts(self, run_id: str) -> dict[str, Any]:
        body = {"artifacts": {"flow_run_id": {"any_": [run_id]}}}
        return {
            item["key"]: item
            for item in self.api.post("/artifacts/filter", json=body).raise_for_status().json()
        }

    def logs(self, run_id: str) -> list[dict[str, Any]]:
        body = {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC"}
        return self.api.post("/logs/filter", json=body).raise_for_status().json()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    port = free_ports(2)  # pages and reports
    folder = tmp_path_factory.mktemp("served")
    running = Served(port, folder / "home", folder / "store")
    running.start()
    yield running
    if running.process.poll() is None:
        running.stop()


@pytest.fixture(scope="session")
def two_runs(served: Served) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two runs of the preset `smoke`; the second of them trains, and long, when the first is asked for."""
    long = served.start_run("pipeline", preset="smoke", seed=7, max_steps=1500)
    deadline = time.monotonic() + 120
    while served.tasks(long).get("train", {}).get("state_name") != "Running" and time.monotonic() < deadline:
        time.sleep(0.2)
    ids = [served.start_run("pipeline", preset="smoke"), long]
    first, second = (served.wait(run_id, 250) for run_id in ids)
    assert re.match(r"smoke-seed1337-[0-9a-f]{8}$", first["name"])
    return first, second
