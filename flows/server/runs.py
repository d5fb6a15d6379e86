"""Runs as the configured Prefect server knows them: also those that are at work, wait or failed, of which
the store has no report.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

from flows import FLOW_NAMES
from flows.results.tables import Row
from flows.server.environment import check_settings, require_answer, settings_first
from schemas.errors import first_line
from stages.processes.own_process import private_folder

MAX_RUNS = 200


def configured_server(store: Path) -> str | None:
    """Address of the API that the environment or a profile names; None when there is none.

    Raises SpecError when it is silent.
    """
    settings_first(Path(os.environ.get("PREFECT_HOME") or _home(store)))
    check_settings()
    from prefect.settings import PREFECT_API_URL

    if url := PREFECT_API_URL.value():
        require_answer(url, "to see the store alone")
    return url or None


def _home(store: Path) -> Path:
    """Prefect's folder in the store; one for this command alone where the store is only for reading."""
    try:
        home = store / "prefect" / "home"
        home.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=home).close()
        return home
    except OSError:
        return private_folder()


def server_runs() -> list[dict[str, Any]]:
    """The latest runs of our flows that have begun or been asked for, the newest last, as plain JSON
    types.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowFilter
    from prefect.client.schemas.sorting import FlowRunSort

    with get_client(sync_client=True) as client:
        ours = FlowFilter(name={"any_": list(FLOW_NAMES)})
        names = {flow.id: flow.name for flow in client.read_flows(flow_filter=ours)}
        found = client.read_flow_runs(
            flow_filter=ours, limit=MAX_RUNS, sort=FlowRunSort.EXPECTED_START_TIME_DESC
        )
    return [
        {
            "run_id": str(run.id),
            "name": run.name,
            "flow": names.get(run.flow_id, ""),
            "state": run.state.name if run.state else "",
            "message": (run.state.message or "") if run.state else "",
            "started": run.start_time.isoformat(timespec="seconds") if run.start_time else "",
        }
        for run in reversed(found)
        if not (run.auto_scheduled and run.state and run.state.is_scheduled())
    ]


def find_server_run(wanted: str) -> dict[str, Any] | None:
    """The newest run whose id or name begins so, or `last`; None when there is none."""
    runs = server_runs()
    fitting = [
        run
        for run in runs
        if wanted == "last" or run["run_id"].startswith(wanted) or run["name"].startswith(wanted)
    ]
    return fitting[-1] if fitting else None


def task_rows(run_id: str) -> list[Row]:
    """The stages of a run with their states."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter

    with get_client(sync_client=True) as client:
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [run_id]}))
    tasks.sort(key=lambda task: task.start_time.timestamp() if task.start_time else float("inf"))
    return [
        {
            "stage": task.name,
            "state": task.state.name or "" if task.state else "",
            "seconds": f"{task.estimated_run_time.total_seconds():.1f}",
            "message": first_line((task.state.message or "") if task.state else ""),
        }
        for task in tasks
    ]
