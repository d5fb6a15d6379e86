"""Labels of a run while it is at work, and an event when it ends.

Messages to people hang on these (`flows.server.notifications`). Other automations can, too.
"""

from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.flows import Flow

from flows.results.endings import ending
from flows.tasks.showing import only_shown


def set_labels(**labels: str | int | float) -> None:
    """Set labels of the present flow run, as `stage` for `fairway.stage`; nothing outside a flow."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    with only_shown("labels of the run"), get_client(sync_client=True) as client:
        named: Any = {f"fairway.{name}": value for name, value in labels.items()}
        client.update_flow_run_labels(context.flow_run.id, named)


def tell_end(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Prefect's hook on_completion and on_failure of a flow: emit the event that says how the run ended.

    A part of another run, as one seed of several, tells nothing: that other run does.
    """
    if flow_run.parent_task_run_id is not None:
        return
    with only_shown("the event of the run's end"):
        with get_client(sync_client=True) as client:
            run = client.read_flow_run(flow_run.id)
        end = ending(run.name, state.is_completed(), state.message or "", run.labels)
        emit_event(
            event=end.event,
            resource={
                "prefect.resource.id": f"prefect.flow-run.{run.id}",
                "prefect.resource.name": run.name,
            },
            related=[
                {
                    "prefect.resource.id": f"prefect.flow.{run.flow_id}",
                    "prefect.resource.role": "flow",
                    "prefect.resource.name": flow.name,
                }
            ],
            payload=end.payload,
        )
