"""What keeps a machine from joining a Prefect server."""

import logging
from collections.abc import Iterator

import httpx
import prefect
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate

from flows.server import joining, lost_runs, setup
from flows.server.joining import check_server
from schemas.errors import SpecError


@pytest.fixture
def client(api: str) -> Iterator[SyncPrefectClient]:
    """A client of a server that was never prepared, and is so again when the test has ended."""
    with get_client(sync_client=True) as client:
        yield client
        for automation in client.read_automations():
            client.delete_automation(automation.id)
        for pool in client.read_work_pools():
            client.delete_work_pool(pool.name)
        for limit in client.read_global_concurrency_limits():
            client.delete_global_concurrency_limit_by_name(limit.name)


def test_a_server_without_our_pool_is_refused(client: SyncPrefectClient, api: str) -> None:
    with pytest.raises(SpecError, match=f"^server = {api}: it has no work pool 'fairway'. Prepare it"):
        check_server(api)


def test_a_pool_that_starts_no_processes_is_refused(client: SyncPrefectClient, api: str) -> None:
    client.create_work_pool(WorkPoolCreate(name=setup.POOL, type="kubernetes"))
    with pytest.raises(SpecError, match="is of the type kubernetes"):
        check_server(api)


def test_the_heartbeat_is_that_of_the_server(
    client: SyncPrefectClient, api: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger=joining.log.name)
    setup.prepare(45)
    assert check_server(api) == 45
    assert not caplog.records
    client.send_worker_heartbeat(setup.POOL, "another machine")
    assert check_server(api) == 45
    assert "2 workers, and the limit tag:train lets 1 of them train at a time" in caplog.text
    assert "prefect gcl update tag:train --limit 2" in caplog.text
    [automation] = client.read_automations_by_name(lost_runs.REQUEUE)
    client.delete_automation(automation.id)
    assert check_server(api) == setup.DEFAULT_HEARTBEAT_SECONDS
    assert "a run whose machine dies stays Running" in caplog.text


def test_a_server_of_another_version_is_refused(
    client: SyncPrefectClient, api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = prefect.__version__
    monkeypatch.setattr(prefect, "__version__", "3.9.1")
    with pytest.raises(SpecError, match=rf"it has Prefect {here}, this machine 3\.9\.1\. Install the same"):
        check_server(api)


@pytest.mark.parametrize(
    ("status", "message"), [(401, "it wants a login. Set PREFECT_API_AUTH_STRING"), (404, "it answers 404")]
)
def test_a_server_that_refuses_is_named_with_the_remedy(
    status: int, message: str, api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: SyncPrefectClient) -> str:
        request = httpx.Request("GET", f"{api}/admin/version")
        raise httpx.HTTPStatusError("no", request=request, response=httpx.Response(status, request=request))

    monkeypatch.setattr(SyncPrefectClient, "api_version", refuse)
    with pytest.raises(SpecError, match=message):
        check_server(api)
