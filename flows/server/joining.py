"""Checks of a Prefect server before a worker of this machine joins it."""

import logging
from datetime import UTC, datetime, timedelta

import httpx
import prefect
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound

from flows.server.lost_runs import heartbeat_of_server
from flows.server.setup import DEFAULT_HEARTBEAT_SECONDS, ONLINE_SECONDS, POOL, TRAIN_LIMIT, worker_name
from schemas.errors import SpecError

log = logging.getLogger(__name__)


def check_server(url: str) -> int:
    """The seconds between heartbeats that the server counts on.

    Raises SpecError if it wants a login, is of another version than this machine's Prefect, or has no pool
    of ours.
    """
    with get_client(sync_client=True) as client:
        try:
            theirs = client.api_version()
        except httpx.HTTPStatusError as error:
            raise _refused(url, error) from None
        if theirs != prefect.__version__:
            raise SpecError(
                f"server = {url}: it has Prefect {theirs}, this machine {prefect.__version__}. Install the "
                "same version of Fairway on both"
            )
        try:
            pool = client.read_work_pool(POOL)
        except ObjectNotFound:
            raise SpecError(
                f"server = {url}: it has no work pool {POOL!r}. Prepare it on its own machine: `fairway up`, "
                "or `python -m flows.server` and `prefect deploy --all`"
            ) from None
        if pool.type != "process":
            raise SpecError(
                f"server = {url}: its work pool {POOL!r} is of the type {pool.type}, and this worker starts "
                "processes. Start a worker of that type instead: `prefect worker start --pool fairway`"
            )
        _say_how_many_train(client)
        heartbeat = heartbeat_of_server(client)
    if heartbeat is None:
        log.warning("the server has no automation for lost runs: a run whose machine dies stays Running")
    return heartbeat or DEFAULT_HEARTBEAT_SECONDS


def _refused(url: str, error: httpx.HTTPStatusError) -> SpecError:
    status = error.response.status_code
    if status != httpx.codes.UNAUTHORIZED:
        return SpecError(f"server = {url}: it answers {status}. Is it the address of a Prefect server?")
    return SpecError(
        f"server = {url}: it wants a login. Set PREFECT_API_AUTH_STRING=user:password to the value that its "
        "PREFECT_SERVER_API_AUTH_STRING has"
    )


def _say_how_many_train(client: SyncPrefectClient) -> None:
    since = datetime.now(UTC) - timedelta(seconds=ONLINE_SECONDS)
    online = {
        worker.name
        for worker in client.read_workers_for_work_pool(POOL)
        if worker.last_heartbeat_time and worker.last_heartbeat_time > since
    }
    workers = len(online | {worker_name()})
    try:
        limit = client.read_global_concurrency_limit_by_name(TRAIN_LIMIT)
    except ObjectNotFound:
        return
    if limit.active and limit.limit < workers:
        log.info(
            "%d workers, and the limit %s lets %d of them train at a time. To change that: "
            "prefect gcl update %s --limit %d",
            workers,
            TRAIN_LIMIT,
            limit.limit,
            TRAIN_LIMIT,
            workers,
        )
