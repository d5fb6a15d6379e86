"""The next try of a flow run whose machine was lost, or that a user starts again in the browser."""

from prefect.context import FlowRunContext

from flows.inputs.specs import run_options
from flows.server.lost_runs import begin_next_try
from flows.tasks.stage_task import stream_logs
from schemas.runtime import RunOptions


def begin_try(given: RunOptions | None) -> RunOptions:
    """The options of this try, as `run_options`; what earlier tries of this flow run left is settled first.

    Raises StageError if the run was lost more often than `options.retries` allows.
    """
    stream_logs()
    options = run_options(given)
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is not None and run.run_count > 1 and run.deployment_id is not None:
        begin_next_try(run.id, options.retries)
    return options
