"""Runs whose machine is gone: back to the queue, a bounded number of times, with nothing left running.

A run of our work pool goes back to the queue, and any worker of the pool goes on with it. Another run, from
a terminal or started by a run, has no worker that could: it is marked as crashed. The server decides both by
heartbeats that stop.
"""

import logging
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.states import AwaitingRetry, Cancelled, Crashed

from schemas.errors import StageError

log = logging.getLogger(__name__)

CRASH = "Fairway: runs whose heartbeats stop have crashed"
REQUEUE = "Fairway: runs of workers whose heartbeats stop go back to the queue"
POOL = "fairway"
HEARTBEATS_MISSED = 3
UNFINISHED = ["RUNNING", "PENDING", "CANCELLING"]
_LOST = "No heartbeat for"  # begins the message of a lost run, by which its losses are counted
# A run that is back in the queue has left its old state by then, and the other automation leaves it alone.
_CRASH_LATER_SECONDS = 30
_LEFT = (
    "The worker stopped before this run ended. Run it again: finished stages are kept, "
    "training resumes from its last checkpoint"
)
_TRIED_AGAIN = "The machine of this try is gone; the run goes on with another try"
_MADE_BEFORE = "An earlier try of this run ended it; this one takes its stages from the store"


def make_automations(client: SyncPrefectClient, heartbeat_seconds: int) -> None:
    """Make both automations where they are missing.

    An unchanged one of ours follows the heartbeat; one that a user changed stays.
    """
    missed = HEARTBEATS_MISSED * heartbeat_seconds
    _make(client, REQUEUE, missed)
    _make(client, CRASH, missed + _CRASH_LATER_SECONDS)


def heartbeat_of_server(client: SyncPrefectClient) -> int | None:
    """Seconds between heartbeats that the server's automation counts on; None if it has none of ours."""
    for automation in client.read_automations_by_name(REQUEUE):
        if isinstance(automation.trigger, EventTrigger):
            return int(automation.trigger.within.total_seconds()) // HEARTBEATS_MISSED
    return None


def begin_next_try(run_id: UUID, allowed: int) -> None:
    """Settle what earlier tries of a run left: its task runs, and the runs that it had started.

    Raises StageError if its machine was lost more than `allowed` times: perhaps the run is what ends them.
    Also if the run had been settled, because a server that just started can miss that end.
    """
    with get_client(sync_client=True) as client:
        states = sorted(client.read_flow_run_states(run_id), key=lambda state: state.timestamp)
        begun = max((at for at, state in enumerate(states) if state.is_scheduled()), default=0)
        ended = states[begun - 1]
        settled = ended.message == _LEFT or ended.is_cancelled() or ended.is_completed()
        if begun and _says_lost(states[begun]) and settled:
            raise StageError(
                f"this run had ended as {ended.name} before the server missed its heartbeats: "
                f"{ended.message or 'its results are stored'}. There is nothing to go on with"
            )
        lost = sum(state.name == "AwaitingRetry" and _says_lost(state) for state in states)
        if lost > allowed:
            raise StageError(
                f"this run was lost with its machine {lost} times, and options.retries = {allowed} allows "
                f"{allowed}. Look for the cause (the machine's memory, its power, `fairway up`); then start "
                "the run again: finished stages are kept, training resumes from its last checkpoint"
            )
        if lost:
            log.info("try %d: the machine of the try before is gone", lost + 1)
        for child in _children(client, [run_id]):
            settle(client, child)
            if child.parent_task_run_id:
                # Prefect would take a finished child run for done, but its result is kept nowhere.
                made = State(type=StateType.CANCELLED, name="Repeated", message=_MADE_BEFORE)
                client.set_task_run_state(child.parent_task_run_id, made, force=True)
        _settle_tasks(client, run_id, _TRIED_AGAIN)


def settle(client: SyncPrefectClient, run: FlowRun) -> None:
    """Give an unfinished run and its task runs their final state, crashed or cancelled; also the runs that it
    started.
    """
    if run.state is None or run.state.is_final() or run.state.is_scheduled():
        return
    for child in _children(client, [run.id]):
        settle(client, child)
    cancelled = run.state.type == StateType.CANCELLING
    _settle_tasks(client, run.id, _LEFT)
    ended: State = (
        Cancelled(message="Cancelled; its worker had stopped") if cancelled else Crashed(message=_LEFT)
    )
    client.set_flow_run_state(run.id, ended, force=True)


def give_back(client: SyncPrefectClient, run: FlowRun) -> None:
    """Put an unfinished run whose worker has stopped back into the queue; settle one that was cancelled."""
    if run.state is None or run.state.type not in (StateType.RUNNING, StateType.PENDING):
        settle(client, run)
        return
    message = "Its worker has stopped; the next free worker goes on"
    client.set_flow_run_state(run.id, AwaitingRetry(message=message), force=True)


def _settle_tasks(client: SyncPrefectClient, run_id: UUID, message: str) -> None:
    of_run = FlowRunFilter(id={"any_": [run_id]})
    unfinished = TaskRunFilter(state={"type": {"any_": UNFINISHED}})
    for task in client.read_task_runs(flow_run_filter=of_run, task_run_filter=unfinished):
        client.set_task_run_state(task.id, Crashed(message=message), force=True)


def _children(client: SyncPrefectClient, run_ids: list[UUID]) -> list[FlowRun]:
    """Runs that these runs started themselves."""
    return client.read_flow_runs(flow_run_filter=FlowRunFilter(parent_flow_run_id={"any_": run_ids}))


def _says_lost(state: State) -> bool:
    return (state.message or "").startswith(_LOST)


def _make(client: SyncPrefectClient, name: str, within_seconds: int) -> None:
    automations = client.read_automations_by_name(name)
    if not automations:
        client.create_automation(automation(name, within_seconds))
        return
    present = automations[0].trigger
    seconds = int(present.within.total_seconds()) if isinstance(present, EventTrigger) else 0
    if seconds != within_seconds and _content(automations[0]) == _content(automation(name, seconds)):
        client.update_automation(automations[0].id, automation(name, within_seconds))


def _content(found: AutomationCore) -> dict[str, Any]:
    """The fields that a user can change, without id and times of creation."""
    return found.model_dump(include=set(AutomationCore.model_fields))


def automation(name: str, within_seconds: int) -> AutomationCore:
    """One of the two automations, by its name."""
    again = name == REQUEUE
    # A worker that dies between taking a run and starting it leaves no heartbeat.
    taken = {"prefect.flow-run.Pending", "prefect.flow-run.Submitting"}
    pool = {"prefect.resource.role": ["work-pool"], "prefect.resource.name": [POOL]}
    trigger = EventTrigger(
        after={"prefect.flow-run.heartbeat", *(taken if again else ())},
        expect={"prefect.flow-run.*"},
        match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
        match_related=ResourceSpecification(pool if again else {}),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=within_seconds),
    )
    message = f"{_LOST} {within_seconds} s: the process of this run is gone"
    action = (
        ChangeFlowRunState(state=StateType.SCHEDULED, name="AwaitingRetry", message=message, force=True)
        if again
        else ChangeFlowRunState(state=StateType.CRASHED, message=message)
    )
    return AutomationCore(name=name, trigger=trigger, actions=[action])
