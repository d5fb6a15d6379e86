"""Runs on machines that share a store make a result once: one of them makes it, the others wait."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from flows.tasks.showing import SERVER_ERRORS

log = logging.getLogger(__name__)

_LEASE_SECONDS = 60.0  # Prefect's least; the slot of a machine that died is free after so long


@contextmanager
def one_maker(stage: str, key: str) -> Iterator[None]:
    """Among the runs of one Prefect server, only one is in this block with `key` at a time.

    On one machine a lock file does the same. The remote store needs neither: a second maker only wastes
    work, so nothing fails where the server does not answer. The server's limit exists only for the block.
    """
    name, slot = f"fairway {stage} {key[:32]}", ExitStack()
    try:
        with get_client(sync_client=True) as client:
            if _is_taken(client, name):
                log.info("%s: another run makes this result; waiting for it", stage)
        # Strict: without it, a limit that its maker removed meanwhile gives a warning in the run's log.
        given = concurrency(
            name, lease_duration=_LEASE_SECONDS, strict=True, raise_on_lease_renewal_failure=False
        )
        slot.enter_context(given)
    except (*SERVER_ERRORS, ConcurrencySlotAcquisitionError) as error:
        if error.__cause__ is not None or not isinstance(error, ConcurrencySlotAcquisitionError):
            log.warning("%s: another run may make the same: the server gave no slot (%s)", stage, error)
    try:
        yield
    finally:
        try:
            slot.close()
            with get_client(sync_client=True) as client:
                client.delete_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            log.debug("%s: the limit is removed already", stage)
        except SERVER_ERRORS as error:
            log.warning("%s: the limit %r stays on the server (%s)", stage, name, type(error).__name__)


def _is_taken(client: SyncPrefectClient, name: str) -> bool:
    """Make the limit if it is missing; whether another run holds its slot."""
    try:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
    except ObjectAlreadyExists:
        return client.read_global_concurrency_limit_by_name(name).active_slots > 0
    return False
