"""Server and workers as services: killed in the middle of a run, and two workers that are asked for the
same.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from schemas.stages import STAGES
from tests.faults.conftest import Undisturbed
from tests.faults.served import HEARTBEAT_SECONDS, Services

pytestmark = [pytest.mark.faults, pytest.mark.slow]


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
    state = services.wait(run_id, 8 * HEARTBEAT_SECONDS, "AwaitingRetry")
    seconds = time.monotonic() - began
    time.sleep(HEARTBEAT_SECONDS + 10)
    waited = services.state(run_id)["name"]  # the automation for runs without a worker leaves it alone
    services.start_worker("two")
    resumed = services.wait(run_id) == "Completed" and services.blob(run_id) == expected
    told = (
        f"{state} {seconds:.0f} s later; another worker ended it, its blob is "
        f"{'identical' if resumed else 'another'}"
    )
    figure(
        "1",
        f"worker and run killed, the server alive (a heartbeat every {HEARTBEAT_SECONDS} s)",
        told,
        state == waited == "AwaitingRetry" and resumed,
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
