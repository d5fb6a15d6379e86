"""Setup of a Prefect server: work pool, training limit, automation for lost runs, final states of stale runs.

`fairway up` calls it; `python -m flows.server` runs it alone, for a server that is a service.
"""

import hashlib
import logging
import os
import platform
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY
from prefect.states import Cancelled, Crashed
from prefect.workers.process import ProcessWorker

from flows.server.channels import VARIABLE, channels
from flows.server.environment import SERVER_START_SECONDS, is_healthy, served_folder
from flows.server.notifications import settle_messages
from schemas.errors import SpecError

log = logging.getLogger(__name__)

POOL = "fairway"
TRAIN_LIMIT = "tag:train"
AUTOMATION = "Fairway: runs whose heartbeats stop have crashed"
_UNFINISHED = ["RUNNING", "PENDING", "CANCELLING"]
_ONLINE_SECONDS = 60.0
DEFAULT_HEARTBEAT_SECONDS = 180


def prepare(heartbeat_seconds: int) -> None:
    """Make the work pool, the limit of one training at a time and the automation, if they are missing.

    A user's changes stay.
    """
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(POOL)
        except ObjectNotFound:
            # Not by `prefect work-pool create`, for which the server asks another machine for templates.
            template = ProcessWorker.get_default_base_job_template()
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
        try:
            client.read_global_concurrency_limit_by_name(TRAIN_LIMIT)
        except ObjectNotFound:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=TRAIN_LIMIT, limit=1))
        _lost_runs_crash(client, 3 * heartbeat_seconds)


def worker_name(folder: Path | None = None) -> str:
    """Name of the worker of a folder (default: the served one) on this machine.

    Two folders never share one, even with equal names.
    """
    path = (folder or served_folder()).resolve()
    return f"{platform.node()} {path.name} {hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"


def mark_stale_runs() -> int:
    """Mark runs that an earlier worker left unfinished as crashed or cancelled; they would hold slots for
    ever. Returns their number.

    Only runs of our pool and their child runs are marked, and only while no other worker of the pool is
    running.
    """
    with get_client(sync_client=True) as client:
        if _another_worker_is_at_work(client):
            log.info("another worker of the pool %r is running: the states of stale runs stay", POOL)
            return 0
        unfinished = FlowRunFilter(state={"type": {"any_": _UNFINISHED}})
        stale = client.read_flow_runs(
            flow_run_filter=unfinished, work_pool_filter=WorkPoolFilter(name={"any_": [POOL]})
        )
        parents = list(stale)
        while parents:
            ids = [run.id for run in parents]
            parents = client.read_flow_runs(
                flow_run_filter=FlowRunFilter(
                    state={"type": {"any_": _UNFINISHED}}, parent_flow_run_id={"any_": ids}
                )
            )
            stale += parents
        for run in stale:
            _settle_one(client, run)
    if stale:
        log.info("set the final state of %d runs that an earlier worker left unfinished", len(stale))
    return len(stale)


def training_slot_holders() -> list[str]:
    """Names of the runs that hold the training limit now; empty while a slot is free or there is no limit."""
    with get_client(sync_client=True) as client:
        try:
            limit = client.read_global_concurrency_limit_by_name(TRAIN_LIMIT)
        except ObjectNotFound:
            return []
        if not limit.active or limit.active_slots < limit.limit:
            return []
        holding = TaskRunFilter(tags={"all_": ["train"]}, state={"type": {"any_": ["RUNNING"]}})
        ids = [task.flow_run_id for task in client.read_task_runs(task_run_filter=holding)]
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(id={"any_": ids})) if ids else []
        return [run.name for run in runs] or ["a run that has ended (its slot is given back within a minute)"]


def _settle_one(client: SyncPrefectClient, run: FlowRun) -> None:
    cancelled = run.state is not None and run.state.type == StateType.CANCELLING
    message = (
        "The worker stopped before this run ended. Run it again: finished stages are kept, "
        "training resumes from its last checkpoint"
    )
    of_run = FlowRunFilter(id={"any_": [run.id]})
    for task in client.read_task_runs(
        flow_run_filter=of_run, task_run_filter=TaskRunFilter(state={"type": {"any_": _UNFINISHED}})
    ):
        client.set_task_run_state(task.id, Crashed(message=message), force=True)
    client.set_flow_run_state(
        run.id,
        Cancelled(message="Cancelled; its worker had stopped") if cancelled else Crashed(message=message),
        force=True,
    )


def _another_worker_is_at_work(client: SyncPrefectClient) -> bool:
    try:
        client.read_work_pool(POOL)
    except ObjectNotFound:
        return False
    since = datetime.now(UTC) - timedelta(seconds=_ONLINE_SECONDS)
    others = [worker for worker in client.read_workers_for_work_pool(POOL) if worker.name != worker_name()]
    return any(
        worker.last_heartbeat_time is not None and worker.last_heartbeat_time > since for worker in others
    )


def _lost_runs_crash(client: SyncPrefectClient, within_seconds: int) -> None:
    """Make the automation if it is missing.

    An unchanged one of ours gets the new number of seconds; a user's own stays.
    """
    automations = client.read_automations_by_name(AUTOMATION)
    if not automations:
        client.create_automation(_automation(within_seconds))
        return
    present = automations[0].trigger
    seconds = int(present.within.total_seconds()) if isinstance(present, EventTrigger) else 0
    if seconds != within_seconds and _content(automations[0]) == _content(_automation(seconds)):
        client.update_automation(automations[0].id, _automation(within_seconds))


def _content(automation: AutomationCore) -> dict[str, Any]:
    """The fields that a user can change, without id and times of creation."""
    return automation.model_dump(mode="json", include=set(AutomationCore.model_fields))


def _automation(within_seconds: int) -> AutomationCore:
    trigger = EventTrigger(
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.*"},
        match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=within_seconds),
    )
    message = f"No heartbeat for {within_seconds} s: the process of this run is gone"
    crash = ChangeFlowRunState(state=StateType.CRASHED, message=message)
    return AutomationCore(name=AUTOMATION, trigger=trigger, actions=[crash])


def main() -> None:
    """Prepare the configured server as soon as it answers."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        addresses = channels(os.environ.get(VARIABLE, "").split())
    except SpecError as error:
        raise SystemExit(f"{VARIABLE}: {error}") from error
    url = PREFECT_API_URL.value() or ""
    deadline = time.monotonic() + SERVER_START_SECONDS
    while not is_healthy(url):
        if time.monotonic() > deadline:
            raise SystemExit(f"PREFECT_API_URL = {url}: no Prefect server answers there")
        time.sleep(0.5)
    mark_stale_runs()
    settle_messages(addresses)
    prepare(PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value() or DEFAULT_HEARTBEAT_SECONDS)
    log.info("work pool %r, limit %s and automation exist", POOL, TRAIN_LIMIT)
