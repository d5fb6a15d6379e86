"""Artifact `plan` of a run that a form or a schedule started: what it will do and take, before it does."""

import logging

from prefect.artifacts import create_markdown_artifact
from prefect.runtime import deployment

from flows.inputs.specs import Plan
from flows.planning.run_plan import Asked, plan_of_run
from flows.results.plan_table import plan_markdown
from flows.tasks.showing import only_shown
from schemas.errors import on_one_line
from schemas.runtime import RunOptions
from stages.store.store import Store

log = logging.getLogger(__name__)


def show_plan(plan: Plan, store: Store, options: RunOptions) -> None:
    """Show the plan of the present flow run, without a probe, and never fail it.

    In a terminal `fairway plan` does this, so a run that a command started goes on at once.
    """
    if deployment.id is None:
        return
    try:
        found = plan_of_run(plan, store, options, Asked())
    except Exception as error:  # noqa: BLE001 - the run itself says what is wrong, if anything is
        log.warning("not shown: the plan: %s: %s", type(error).__name__, on_one_line(error))
        return
    for warning in found.warnings:
        log.warning("plan: %s", warning)
    with only_shown("the plan"):
        create_markdown_artifact(
            key="plan", markdown=plan_markdown(found), description="what the run will do and take"
        )
