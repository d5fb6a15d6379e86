"""Runs on the configured Prefect server, including running, waiting and failed ones without a report in the
store.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from flows import FLOW_NAMES
from flows.results.endings import reason
from flows.results.tables import Row
from flows.server.environment import require_answer
from flows.server.settings import check_settings, settings_first
from schemas.errors import first_line
from stages.processes.own_process import private_folder

MAX_RUNS = 200


def configured_server(store: Path) -> str | None:
    """Address of the API that the environment or a profile names; None if there is none.

    Raises SpecError if it does not answer.
    """
    settings_first(Path(os.environ.get("PREFECT_HOME") or _home(store)))
    check_settings()
    from prefect.settings import PREFECT_API_URL

    if url := PREFECT_API_URL.value():
        require_answer(url, "to see the store alone")
    return url or None


def _home(store: Path) -> Path:
    """Prefect's folder in the store; a folder for this command alone if the store is read-only, or is not
    made yet.
    """
    if not store.is_dir():
        return private_folder()
    try:
        home = store / "prefect" / "home"
        home.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=home).close()
        return home
    except OSError:
        return private_folder()


def server_runs() -> list[dict[str, Any]]:
    """The latest runs of our flows, scheduled ones excluded, the newest last, as plain JSON types."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowFilter
    from prefect.client.schemas.sorting import FlowRunSort

    with get_client(sync_client=True) as client:
        ours = FlowFilter(name={"any_": list(FLOW_NAMES)})
        names = {flow.id: flow.name for flow in client.read_flows(flow_filter=ours)}
        runs = client.read_flow_runs(
            flow_filter=ours, limit=MAX_RUNS, sort=FlowRunSort.EXPECTED_START_TIME_DESC
        )
    return [
        {
            "run_id": str(run.id),
            "name": run.name,
            "flow": names.get(run.flow_id, ""),
            "state": run.state.name if run.state else "",
            "message": reason(run.state.message) if run.state else "",
            "started": run.start_time.isoformat(timespec="seconds") if run.start_time else "",
        }
        for run in reversed(runs)
        if not (run.auto_scheduled and run.state and run.state.is_scheduled())
    ]


def find_server_run(wanted: str) -> dict[str, Any] | None:
    """The newest run whose id or name begins with the text, or `last`; None if there is none."""
    runs = server_runs()
    fitting = [
        run
        for run in runs
        if wanted == "last" or run["run_id"].startswith(wanted) or run["name"].startswith(wanted)
    ]
    return fitting[-1] if fitting else None


def change_tags(run_id: str, tags: Sequence[str], remove: bool = False) -> None:
    """Give the flow run these tags too, or take them from it. A run that the server does not know is left
    alone.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            served = client.read_flow_run(UUID(run_id))
        except (ObjectNotFound, ValueError):  # or its id is none of a server's
            return
        others = [tag for tag in served.tags if tag not in tags]
        client.update_flow_run(served.id, tags=others if remove else [*others, *tags])


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
            "message": first_line(reason(task.state.message) if task.state else ""),
        }
        for task in tasks
    ]
