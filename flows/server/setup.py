"""Setup of a Prefect server: work pool, training limit, automations for lost runs, states of stale runs.

`fairway up` calls it; `python -m flows.server` runs it alone, for a server that is a service.
"""

import hashlib
import logging
import os
import platform
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY
from prefect.workers.process import ProcessWorker

from flows.server.channels import VARIABLE, channels
from flows.server.environment import SERVER_START_SECONDS, is_healthy, served_folder
from flows.server.lost_runs import POOL, UNFINISHED, give_back, make_automations, settle
from flows.server.notifications import settle_messages
from schemas.errors import SpecError

log = logging.getLogger(__name__)

TRAIN_LIMIT = "tag:train"
ONLINE_SECONDS = 60.0
DEFAULT_HEARTBEAT_SECONDS = 180


def prepare(heartbeat_seconds: int) -> None:
    """Make the work pool, the limit of one training at a time and the automations, if they are missing.

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
        make_automations(client, heartbeat_seconds)


def worker_name(folder: Path | None = None) -> str:
    """Name of the worker of a folder (default: the served one) on this machine.

    Two folders never share one, even with equal names; nor do two homes of Prefect.
    """
    path = (folder or served_folder()).resolve()
    home = Path(os.environ.get("PREFECT_HOME", path / ".prefect")).expanduser().resolve()
    identity = os.fsencode(path) if home == path / ".prefect" else os.fsencode(f"{path}\0{home}")
    return f"{platform.node()} {path.name} {hashlib.sha256(identity).hexdigest()[:8]}"


def mark_stale_runs() -> int:
    """End the states of runs that a worker of this machine left unfinished; they would hold slots for ever.
    Returns the number of runs.

    Only runs of our pool count. While no other worker of it is running, they are marked as crashed or
    cancelled, with their child runs. Otherwise those of this worker go back to the queue.
    """
    with get_client(sync_client=True) as client:
        unfinished = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state={"type": {"any_": UNFINISHED}}),
            work_pool_filter=WorkPoolFilter(name={"any_": [POOL]}),
        )
        if _another_worker_is_at_work(client):
            end, how = give_back, "back in the queue"
            stale = [run for run in unfinished if _worker_of(run) == worker_name()]
        else:
            end, how = settle, "final states set"
            stale = [run for run in unfinished if _may_be_of_this_machine(_worker_of(run))]
        for run in stale:
            end(client, run)
    if stale:
        log.info("%d runs that a worker left unfinished: %s", len(stale), how)
    return len(stale)


def _worker_of(run: FlowRun) -> str:
    """Name of the worker that took the run last; empty if none is known."""
    return str(run.labels.get("prefect.worker.name", ""))


def _may_be_of_this_machine(worker: str) -> bool:
    """False for a worker that `fairway up` named on another machine: while this server was away, it may have
    gone on. Where it has not, the automation finds out.
    """
    return not worker or worker.startswith((f"{platform.node()} ", "ProcessWorker "))


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


def _another_worker_is_at_work(client: SyncPrefectClient) -> bool:
    try:
        client.read_work_pool(POOL)
    except ObjectNotFound:
        return False
    since = datetime.now(UTC) - timedelta(seconds=ONLINE_SECONDS)
    others = [worker for worker in client.read_workers_for_work_pool(POOL) if worker.name != worker_name()]
    return any(
        worker.last_heartbeat_time is not None and worker.last_heartbeat_time > since for worker in others
    )


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
    log.info("work pool %r, limit %s and automations exist", POOL, TRAIN_LIMIT)
