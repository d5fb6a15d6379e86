"""Ctrl-C, SIGTERM and Prefect's cancel: every process of the run is gone within 15 seconds, and the next
run goes on.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.server.environment import is_healthy
from flows.server.settings import SETTINGS
from tests.faults.conftest import STEPS, TWO_RANKS, Interrupted
from tests.faults.harness import FULL, ROOT, Struck, start, start_fairway
from tests.ports import free_port

pytestmark = pytest.mark.faults

WITHIN_SECONDS = 15.0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM] if FULL else [signal.SIGINT])
def test_an_interrupted_run_leaves_no_process(
    how: signal.Signals,
    interrupted: Callable[[signal.Signals], Interrupted],
    tmp_path: Path,
    figure: Callable[..., None],
) -> None:
    run = interrupted(how)
    told = (
        f"{run.num_processes} processes gone in {run.gone_after:.1f} s, status {run.status}"
        if run.gone_after
        else f"{run.num_left} of {run.num_processes} left"
    )
    resumed = goes_on(run.store, tmp_path / "logs")
    told += ", the next run went on from the checkpoint" if resumed else ", the next run did not go on"
    name = "Ctrl-C (SIGINT)" if how == signal.SIGINT else how.name
    expected = 130 if how == signal.SIGINT else -how
    figure(
        "2",
        f"{name} while two ranks train",
        told,
        run.gone_after is not None
        and run.gone_after <= WITHIN_SECONDS
        and run.status == expected
        and resumed,
    )


@pytest.mark.slow
def test_a_run_cancelled_on_a_server_leaves_no_process(tmp_path: Path, figure: Callable[..., None]) -> None:
    port, store = free_port(), tmp_path / "store"
    url = f"http://127.0.0.1:{port}/api"
    environment = {**SETTINGS, "PREFECT_HOME": str(tmp_path / "home"), "DO_NOT_TRACK": "1"}
    server = start(
        ["-m", "prefect", "server", "start", "--port", str(port)], tmp_path / "logs", **environment
    )
    assert server.wait_for(lambda: is_healthy(url))
    environment["PREFECT_API_URL"] = url
    serve = "from flows.pipeline import pipeline; pipeline.serve(name='faults')"
    runner = start(["-c", serve], tmp_path / "logs", **environment)
    try:
        assert runner.wait_for(lambda: _post(url, "deployments/filter", {}))
        [deployment] = _post(url, "deployments/filter", {})
        overrides = [
            STEPS,
            *(f"{section}.compute.num_processes=2" for section in ("train", "merge", "evaluate")),
        ]
        options = {"store": str(store), "checkpoint_every_seconds": 0.5}
        parameters = {"preset": "smoke", "overrides": overrides, "options": options}
        flow_run = _post(url, f"deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
        assert runner.wait_for(lambda: list(store.glob("work/train/*/checkpoints/*.json")))
        command = [sys.executable, "-m", "prefect", "flow-run", "cancel", flow_run["id"]]
        started = time.monotonic()
        subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=True, capture_output=True)
        seconds = _until(lambda: not _of_the_run(runner), started, 60)
        left = len(_of_the_run(runner))
        state = _until(
            lambda: _get(url, f"flow_runs/{flow_run['id']}")["state"]["type"] == "CANCELLED", started, 60
        )
    finally:
        runner.end()
        server.end()
    resumed = goes_on(store, tmp_path / "logs")
    told = f"{left} processes left after {seconds:.1f} s, Cancelled after {state:.1f} s, resumed: {resumed}"
    figure(
        "2",
        "`prefect flow-run cancel` while two ranks train",
        told,
        left == 0 and seconds <= WITHIN_SECONDS and state < 60 and resumed,
    )


def goes_on(store: Path, logs: Path) -> bool:
    """Whether the next run goes on from the checkpoint; at full size also whether it then finishes."""
    run = start_fairway(store, logs, *TWO_RANKS)
    try:
        went_on = run.wait_for(lambda: "going on from the checkpoint" in run.text(), 200)
        return bool(went_on) and (not FULL or run.process.wait(300) == 0)
    finally:
        run.end()


def _of_the_run(runner: Struck) -> list[int]:
    """What the run consists of: all but the server of deployments itself and Python's own helper of it."""
    commands = {pid: Path(f"/proc/{pid}/cmdline") for pid in runner.pids() if pid != runner.process.pid}
    return [
        pid
        for pid, path in commands.items()
        if path.exists() and b"resource_tracker" not in path.read_bytes()
    ]


def _until(condition: Callable[[], bool], started: float, seconds: float) -> float:
    while time.monotonic() - started < seconds and not condition():
        time.sleep(0.1)
    return time.monotonic() - started


def _post(url: str, path: str, body: dict) -> list | dict:
    request = urllib.request.Request(
        f"{url}/{path}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def _get(url: str, path: str) -> dict:
    with urllib.request.urlopen(f"{url}/{path}", timeout=30) as answer:
        return json.loads(answer.read())
