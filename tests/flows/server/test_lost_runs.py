"""A run that was lost with its machine: which states end, when it is refused, and what its next try finds."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.flow_engine import run_flow
from prefect.states import AwaitingRetry, Cancelling, Crashed, Running

from flows.server import lost_runs
from flows.tasks.tries import begin_try
from schemas.errors import StageError
from schemas.runtime import RunOptions

LOST = "No heartbeat for 90 s: the process of this run is gone"


@pytest.fixture
def client(api: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@flow(name="of the test, inner", persist_result=False)
def inner() -> str:
    return "made"


ends = list[bool]()


@flow(name="of the test", persist_result=False)
def outer(retries: int = 3) -> list[str]:
    """Two runs of its own, and a machine that dies between them where `ends` says so."""
    begin_try(RunOptions(retries=retries))
    first = inner()
    if ends and ends.pop():
        raise KeyboardInterrupt
    return [first, inner()]


def _run(client: SyncPrefectClient, **parameters: Any) -> FlowRun:
    deployment = client.create_deployment(client.create_flow(outer), "of the test")
    return client.create_flow_run_from_deployment(deployment, parameters=parameters)


def _lose(client: SyncPrefectClient, run: UUID, message: str = LOST) -> None:
    """What the automation does."""
    client.set_flow_run_state(run, Running(), force=True)
    client.set_flow_run_state(run, AwaitingRetry(message=message), force=True)


def test_the_next_try_makes_its_own_runs_again_and_leaves_nothing_running(client: SyncPrefectClient) -> None:
    """Prefect would take the finished inner run for done, and find no result of it."""
    run = _run(client)
    ends[:] = [True]
    with pytest.raises(KeyboardInterrupt):
        run_flow(outer, flow_run=run)
    client.set_flow_run_state(run.id, AwaitingRetry(message=LOST), force=True)
    assert run_flow(outer, flow_run=client.read_flow_run(run.id)) == ["made", "made"]
    tried = client.read_flow_run(run.id)
    assert (tried.state.name, tried.run_count) == ("Completed", 2)
    started = client.read_flow_runs(flow_run_filter=FlowRunFilter(parent_flow_run_id={"any_": [run.id]}))
    assert [child.state.name for child in started] == ["Completed"] * 3


def test_a_run_that_loses_its_machine_again_and_again_is_refused(client: SyncPrefectClient) -> None:
    run = _run(client, retries=1)
    _lose(client, run.id)
    lost_runs.begin_next_try(run.id, allowed=1)
    _lose(client, run.id)
    message = r"lost with its machine 2 times, and options.retries = 1 allows 1\..*start the run again"
    with pytest.raises(StageError, match=message):
        run_flow(outer, flow_run=client.read_flow_run(run.id), parameters={"retries": 1})
    assert client.read_flow_run(run.id).state.name == "Failed"


def test_a_run_that_had_ended_does_not_come_back(client: SyncPrefectClient) -> None:
    run = _run(client)
    client.set_flow_run_state(run.id, Running(), force=True)
    client.set_flow_run_state(run.id, Crashed(message=lost_runs._LEFT), force=True)
    lost = AwaitingRetry(message="No heartbeat for 90 s: the process of this run is gone")
    client.set_flow_run_state(run.id, lost, force=True)
    with pytest.raises(StageError, match=r"had ended as Crashed before .*: The worker stopped"):
        lost_runs.begin_next_try(run.id, allowed=3)
    client.set_flow_run_state(run.id, AwaitingRetry(message="a user starts it again"), force=True)
    lost_runs.begin_next_try(run.id, allowed=3)


def test_a_worker_that_was_stopped_counts_as_no_loss(client: SyncPrefectClient) -> None:
    run = _run(client)
    for _ in range(3):
        client.set_flow_run_state(run.id, Running(), force=True)
        lost_runs.give_back(client, client.read_flow_run(run.id))
        assert client.read_flow_run(run.id).state.name == "AwaitingRetry"
    lost_runs.begin_next_try(run.id, allowed=0)


def test_what_an_earlier_try_left_running_is_settled(client: SyncPrefectClient) -> None:
    run = _run(client)
    begun = client.create_task_run(task(lambda: None, name="train"), run.id, dynamic_key="0", state=Running())
    _lose(client, run.id)
    lost_runs.begin_next_try(run.id, allowed=1)
    state = client.read_task_run(begun.id).state
    assert state.is_crashed()
    assert state.message == "The machine of this try is gone; the run goes on with another try"


def test_a_run_that_was_being_cancelled_does_not_come_back(client: SyncPrefectClient) -> None:
    run = _run(client)
    client.set_flow_run_state(run.id, Running(), force=True)
    client.set_flow_run_state(run.id, Cancelling(), force=True)
    lost_runs.give_back(client, client.read_flow_run(run.id))
    assert client.read_flow_run(run.id).state.name == "Cancelled"


def test_settling_leaves_ended_and_queued_runs_alone(client: SyncPrefectClient) -> None:
    run = _run(client)
    lost_runs.settle(client, client.read_flow_run(run.id))
    assert client.read_flow_run(run.id).state.is_scheduled()
    client.set_flow_run_state(run.id, Crashed(message="of itself"), force=True)
    lost_runs.settle(client, client.read_flow_run(run.id))
    assert client.read_flow_run(run.id).state.message == "of itself"


def test_only_runs_of_our_pool_go_back_to_the_queue() -> None:
    again = lost_runs.automation(lost_runs.REQUEUE, 90)
    assert again.trigger.match_related.root == {
        "prefect.resource.role": ["work-pool"],
        "prefect.resource.name": ["fairway"],
    }
    assert (again.actions[0].state.value, again.actions[0].name) == ("SCHEDULED", "AwaitingRetry")
    crashed = lost_runs.automation(lost_runs.CRASH, 120)
    assert crashed.trigger.match_related.matches_every_resource()
    assert crashed.actions[0].state.value == "CRASHED"
