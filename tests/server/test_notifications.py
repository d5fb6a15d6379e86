"""`fairway up --notify`: one message for each end of a run, at an address that nobody else gets to read."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.ports import free_ports
from tests.server.conftest import Served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SECRET = "5ecretOfTheChannel"


@pytest.fixture(scope="module")
def inbox() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Address of a webhook, and the messages that it got."""
    got = list[dict[str, Any]]()

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == f"/hook/{SECRET}"
            got.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook/{SECRET}", got
    server.shutdown()


@pytest.fixture(scope="module")
def notifying(tmp_path_factory: pytest.TempPathFactory, inbox: Any) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("notifying")
    options = ("--notify", inbox[0])
    running = Served(free_ports(2), folder / "home", folder / "store", options=options)
    running.start()
    yield running
    if running.process.poll() is None:
        running.stop()


def _message(got: list[dict[str, Any]], run: dict[str, Any], seconds: float = 60) -> dict[str, Any]:
    """The only message about the run."""
    deadline = time.monotonic() + seconds
    while not (found := [item for item in got if run["name"] in item["title"]]):
        assert time.monotonic() < deadline, f"no message about {run['name']}: {got}"
        time.sleep(0.2)
    assert len(found) == 1
    got.remove(found[0])
    assert f"runs/flow-run/{run['id']}" in found[0]["message"]
    return found[0]


def _kill_the_run(served: Served, run_id: str) -> None:
    for process in psutil.process_iter(["environ"]):
        # The run's own process is the first with this variable; what it starts inherits the variable.
        if (process.info["environ"] or {}).get("PREFECT__FLOW_RUN_ID") == run_id.replace("-", "") or (
            process.info["environ"] or {}
        ).get("PREFECT__FLOW_RUN_ID") == run_id:
            os.kill(process.pid, signal.SIGKILL)
            return
    raise AssertionError("the process of the run is not found")


def test_each_end_of_a_run_is_told_once(notifying: Served, inbox: Any) -> None:
    got = inbox[1]
    finished = notifying.wait(notifying.start_run("pipeline", preset="smoke"), 500)
    said = _message(got, finished)
    assert said["title"] == f"Fairway: {finished['name']} finished"
    report = notifying.artifacts(finished["id"])["report"]["data"]
    address = report[report.index("(") + 1 : report.index(")")]
    assert "val_bpb: " in said["message"]
    assert " of 16,000,000" in said["message"]
    assert f"Report: {address}" in said["message"]

    small = {"preset": "smoke", "overrides": ["check_size.limit_bytes=100"]}
    over = notifying.wait(notifying.start_run("pipeline", **small), 500)
    said = _message(got, over)
    assert said["title"] == f"Fairway: {over['name']} is over the limit"
    assert "over the limit by" in said["message"]

    rule = {"validate_every": "10%", "stop_if": "val_bpb > 0.1 at 10%"}
    failed = notifying.wait(notifying.start_run("pipeline", preset="smoke", seed=8, options=rule), 500)
    said = _message(got, failed)
    assert said["title"] == f"Fairway: {failed['name']} failed"
    assert said["message"].startswith("Stage: train\ntraining was stopped")

    long = notifying.start_run("pipeline", preset="smoke", seed=9, max_steps=100_000)
    deadline = time.monotonic() + 300
    while not notifying.processes("stages.training.worker") and time.monotonic() < deadline:
        time.sleep(0.2)
    _kill_the_run(notifying, long)
    crashed = notifying.wait(long, 120)
    said = _message(got, crashed)
    assert said["title"] == f"Fairway: {crashed['name']} crashed"
    assert said["message"].startswith("Stage: train\n")

    time.sleep(10)  # a second message of any of them would have come
    assert got == []


def test_several_seeds_are_one_run_and_one_message(notifying: Served, inbox: Any) -> None:
    got = inbox[1]
    seeds = {"preset": "smoke", "new_seeds_per_run": 1, "max_seeds": 2}
    run = notifying.wait(notifying.start_run("seed-validation", **seeds), 500)
    _message(got, run)
    time.sleep(5)
    assert got == []


def test_the_address_stands_in_no_file_of_the_server_and_in_no_answer_of_it(notifying: Served) -> None:
    """Neither in logs nor in the database, where it lies encrypted, nor in the store."""
    for folder in (notifying.home, notifying.store):
        assert isinstance(folder, Path)
        for path in folder.rglob("*"):
            assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    for what in ("block_documents", "automations", "flow_runs", "logs", "artifacts", "deployments"):
        answer = notifying.api.post(f"/{what}/filter", json={}).raise_for_status().text
        assert SECRET not in answer, what
    assert "fairway-notify-1" in notifying.api.post("/block_documents/filter", json={}).text
