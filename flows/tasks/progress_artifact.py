"""Progress artifact of a task run: one that is updated in place, seldom enough for runs of any length."""

import logging
import time
from collections.abc import Callable
from contextvars import copy_context
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from flows.tasks.showing import SERVER_ERRORS

log = logging.getLogger(__name__)

SECONDS_BETWEEN = 2.0


def progress_artifact(stage: str) -> Callable[[float, float, str], None]:
    """A function that hears done, total and unit.

    Call this in the task; the function may be called from other threads of it.
    """
    context, key = copy_context(), f"progress-{stage.replace('_', '-')}"
    shown: dict[str, UUID] = {}
    last = float("-inf")

    def show(done: float, total: float, unit: str) -> None:
        nonlocal last
        now = time.monotonic()
        if (now - last < SECONDS_BETWEEN and done < total) or total <= 0:
            return
        last = now
        percent = round(100 * min(1.0, done / total), 1)
        words = f"{stage}: {done:,.0f} of {total:,.0f} {unit}" if unit != "%" else f"{stage}: {done:.0f} %"
        try:
            if "id" in shown:
                context.copy().run(
                    update_progress_artifact, artifact_id=shown["id"], progress=percent, description=words
                )
            else:
                made = context.copy().run(
                    create_progress_artifact, progress=percent, key=key, description=words
                )
                assert isinstance(made, UUID)  # not a coroutine: nothing here is asynchronous
                shown["id"] = made
        except SERVER_ERRORS as error:
            last = (
                now + 30 * SECONDS_BETWEEN
            )  # the stage is worth more than its progress: try again in a minute
            log.warning("%s: the server did not take the progress (%s)", stage, type(error).__name__)

    return show
