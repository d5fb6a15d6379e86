"""Log lines and progress of a stage reach the run and the listener, from other threads too."""

import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

from flows.tasks import stage_task as tasks
from flows.tasks.progress import stage_progress
from schemas.runtime import RunOptions


def test_lines_from_the_stage_and_its_threads_are_stored_under_the_task_run(
    api: str, smoke_run: Any, smoke_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, told = tasks.run_stage, []

    def talkative(*arguments: Any) -> Any:
        logger = logging.getLogger("stages.talkative")
        logger.info("from the stage itself")
        thread = threading.Thread(target=logger.info, args=("from a thread of it",))
        thread.start()
        thread.join()
        *_, on_progress, _ = arguments
        on_progress(1.0, 2.0, "tokens")
        return real(*arguments)

    @flow
    def one_stage() -> None:
        run = tasks.stage_runner(RunOptions(store=str(smoke_store)), "test", outcomes)
        run(
            "check_size",
            smoke_run.report.spec.check_size,
            package=smoke_run.report.package,
            packed=smoke_run.report.packed,
        )

    outcomes: list[Any] = []
    monkeypatch.setattr(tasks, "run_stage", talkative)
    token = stage_progress.set(lambda *heard: told.append(heard))
    try:
        state = one_stage(return_state=True)
    finally:
        stage_progress.reset(token)
    assert state.is_completed()
    assert outcomes[0].cached
    assert told == [("check_size", 1.0, 2.0, "tokens")]

    wanted = {"from the stage itself", "from a thread of it"}
    found: dict[str, Any] = {}
    deadline = time.monotonic() + 15
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline and not wanted <= set(found):
            logs = client.read_logs(
                LogFilter(flow_run_id=LogFilterFlowRunId(any_=[state.state_details.flow_run_id]))
            )
            found = {item.message: item.task_run_id for item in logs}
            time.sleep(0.3)
    assert wanted <= set(found)
    assert found["from the stage itself"] == found["from a thread of it"] is not None
