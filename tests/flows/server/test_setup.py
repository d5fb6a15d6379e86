"""What `fairway up` makes on a server, and whose runs it settles."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.states import Running

from flows.server import lost_runs
from flows.server import setup as server


@pytest.fixture
def client(api: str) -> Iterator[SyncPrefectClient]:
    """A client of a server that is prepared, and is as before when the test has ended."""
    server.prepare(180)
    with get_client(sync_client=True) as client:
        yield client
        for name in (lost_runs.REQUEUE, lost_runs.CRASH):
            for automation in client.read_automations_by_name(name):
                client.delete_automation(automation.id)
        client.delete_global_concurrency_limit_by_name(server.TRAIN_LIMIT)
        client.delete_work_pool(server.POOL)


def _running_flow(client: SyncPrefectClient, worker: str | None = None) -> UUID:
    """A flow run that a worker of our pool, perhaps of this name, has begun."""
    flow = client.create_flow_from_name("pipeline")
    deployment = client.create_deployment(flow, "of the test", work_pool_name=server.POOL)
    run = client.create_flow_run_from_deployment(deployment)
    client.set_flow_run_state(run.id, Running(), force=True)
    if worker:
        client.update_flow_run_labels(run.id, {"prefect.worker.name": worker})
    return run.id


def _state(client: SyncPrefectClient, run: UUID) -> str:
    state = client.read_flow_run(run).state
    assert state is not None
    return state.type.value


def _automation(client: SyncPrefectClient, name: str = lost_runs.CRASH) -> Any:
    [found] = client.read_automations_by_name(name)
    return found


def test_two_checkouts_of_one_name_have_a_worker_each(tmp_path: Path) -> None:
    mine, other = tmp_path / "a" / "fairway", tmp_path / "b" / "fairway"
    assert server.worker_name(mine) != server.worker_name(other)
    assert server.worker_name(mine) == server.worker_name(tmp_path / "b" / ".." / "a" / "fairway")


def test_runs_of_another_checkout_at_work_are_left_alone(client: SyncPrefectClient, tmp_path: Path) -> None:
    here = Path(server.__file__).parents[2]
    client.send_worker_heartbeat(server.POOL, server.worker_name(tmp_path / here.name))
    run = _running_flow(client)
    assert server.mark_stale_runs() == 0
    assert _state(client, run) == "RUNNING"


def test_runs_that_this_checkout_left_are_settled(client: SyncPrefectClient) -> None:
    client.send_worker_heartbeat(server.POOL, server.worker_name())
    run = _running_flow(client)
    assert server.mark_stale_runs() >= 1
    assert _state(client, run) == "CRASHED"


def test_runs_of_this_worker_go_back_to_the_queue_while_another_is_at_work(
    client: SyncPrefectClient, tmp_path: Path
) -> None:
    client.send_worker_heartbeat(server.POOL, server.worker_name(tmp_path))
    mine, theirs = _running_flow(client, server.worker_name()), _running_flow(client, "other folder 0")
    assert server.mark_stale_runs() == 1
    assert _state(client, mine) == "SCHEDULED"
    assert _state(client, theirs) == "RUNNING"


def test_runs_of_another_machine_are_left_to_the_automation(client: SyncPrefectClient) -> None:
    """While the server was away, that machine may have gone on with them."""
    run = _running_flow(client, "another-machine fairway 01234567")
    server.mark_stale_runs()
    assert _state(client, run) == "RUNNING"


def test_an_automation_that_was_switched_off_stays_off(client: SyncPrefectClient) -> None:
    made = _automation(client)
    client.update_automation(
        made.id, lost_runs.automation(lost_runs.CRASH, 570).model_copy(update={"enabled": False})
    )
    server.prepare(60)
    assert not _automation(client).enabled


def test_an_automation_that_was_edited_stays_as_it_is(client: SyncPrefectClient) -> None:
    made = _automation(client)
    edited = lost_runs.automation(lost_runs.CRASH, 570)
    edited = edited.model_copy(
        update={"trigger": edited.trigger.model_copy(update={"within": timedelta(seconds=900)})}
    )
    client.update_automation(made.id, edited)
    server.prepare(60)
    assert _automation(client).trigger.within == timedelta(seconds=900)


def test_an_automation_of_ours_follows_the_heartbeat(client: SyncPrefectClient) -> None:
    server.prepare(60)
    again = _automation(client, lost_runs.REQUEUE)
    assert again.trigger.within == timedelta(seconds=180)
    assert "No heartbeat for 180 s" in again.actions[0].message
    assert (
        _automation(client).trigger.within > again.trigger.within
    )  # it only gets what is not back in the queue
    assert lost_runs.heartbeat_of_server(client) == 60
