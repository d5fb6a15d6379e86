"""Stage → Prefect task: name, retries of transient errors, streamed log lines, progress, and `Cached`
from the store.

The store decides what is cached (docs/decisions/0001-the-store-is-the-cache.md); Prefect shows it and
retries.
"""

import logging
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from contextvars import Context, copy_context
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging.handlers import APILogHandler
from prefect.states import Completed
from prefect.tasks import exponential_backoff
from pydantic import ValidationError

from flows.server.setup import TRAIN_LIMIT, training_slot_holders
from flows.tasks.one_maker import one_maker
from flows.tasks.progress import OUR_LOGGERS, stage_progress
from flows.tasks.progress_artifact import progress_artifact
from flows.tasks.run_end import set_labels
from flows.tasks.showing import only_shown
from flows.tasks.training_artifact import TrainingArtifact
from schemas.base import Schema
from schemas.errors import FairwayError, first_line, interrupts_kept
from schemas.runtime import RunOptions
from schemas.stages import KNOWN_STAGES
from stages.execution.runner import StageOutcome, is_made, run_stage
from stages.processes.stopping import stopping
from stages.store.keys import stage_key
from stages.store.machine import resolve_precision
from stages.store.store import Store, open_store
from stages.training.metrics import LINES_NAME

log = logging.getLogger(__name__)

BACKOFF_SECONDS = 2.0
PERMANENT_ERRORS = (FairwayError, ValidationError)
RESOURCE_TAGS = {"train": ["train"]}  # Prefect's tag limits keep one training at a time on a machine

_running: dict[UUID, Context] = {}  # by task run id, the contexts of the tasks that run in this process now


@dataclass(frozen=True)
class StageRunner:
    """Runs a stage as a task and gives its result: `run("merge", spec, trained=…, tokenized=…)`.

    `label` goes into the names of the task runs; every StageOutcome is appended to `outcomes`.
    """

    options: RunOptions
    label: str
    outcomes: list[StageOutcome]
    store: Store
    started: datetime
    training: TrainingArtifact
    again: frozenset[str] = frozenset()
    """Stages that are computed even if the store has them."""

    def __call__(self, stage: str, spec: Any, **inputs: Schema) -> Any:
        """The stage's result. Raises what the stage raises."""
        set_labels(stage=stage)
        run_task, again = stage_task(stage, self.options), stage in self.again
        if run_task.tags and not again and is_made(self.store, stage, spec, inputs):
            run_task = run_task.with_options(tags=[])  # nothing to compute: no reason to wait for a slot
        elif run_task.tags:
            _say_who_trains(stage)
        given = (stage, spec, inputs, self.options, self.label, self.training, again)
        state: Any = run_task(*given, return_state=True)
        outcome = state.result(raise_on_failure=True)
        self.outcomes.append(outcome)
        return outcome.record.result


def stage_runner(
    options: RunOptions, label: str, outcomes: list[StageOutcome], again: Iterable[str] = ()
) -> StageRunner:
    """The runner of a run that starts now. `outcomes` holds what came before, and gets the rest."""
    stream_logs()
    return StageRunner(
        options,
        label,
        outcomes,
        open_store(options),
        datetime.now(UTC),
        TrainingArtifact(label),
        frozenset(again),
    )


def _say_who_trains(stage: str) -> None:
    with only_shown(f"whom {stage} waits for"):
        if others := training_slot_holders():
            log.info("%s: waits for %s, which holds the limit %s", stage, " and ".join(others), TRAIN_LIMIT)


def stage_task(stage: str, options: RunOptions) -> Task[..., Any]:
    """The Prefect task of one stage, retried as `stored_task` says."""
    return stored_task(_run_in_task, stage, "{stage}-{label}", options, RESOURCE_TAGS.get(stage, []))


def stored_task(
    function: Callable[..., Any], name: str, run_name: str, options: RunOptions, tags: Iterable[str] = ()
) -> Task[..., Any]:
    """A Prefect task whose result the store keeps, retried `options.retries` times with growing delays after
    a transient error.
    """
    decorate = task(
        name=name,
        task_run_name=run_name,
        tags=tags,
        retries=options.retries,
        retry_delay_seconds=exponential_backoff(BACKOFF_SECONDS) if options.retries else 0,
        retry_jitter_factor=0.3,
        retry_condition_fn=is_transient,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    return decorate(function)


def is_transient(task: Any, task_run: TaskRun, state: State) -> bool:
    """Whether another try can help: not after a SpecError, a StageError or data that does not validate."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, PERMANENT_ERRORS):
        return False
    if task_run.run_count <= task.retries:
        kind, again = type(error).__name__, task_run.run_count + 1
        cause, tries = first_line(error), task.retries + 1
        log.warning("%s: %s: %s. Try %d of %d follows", task.name, kind, cause, again, tries)
    return True


def stream_logs() -> None:
    """Send the lines of our loggers to the log of the run they belong to. Safe to call again.

    A line from a thread without run context goes to the one task that runs in this process; with several it
    is kept local.
    """
    for name in OUR_LOGGERS:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)
        if not any(isinstance(handler, APILogHandler) for handler in logger.handlers):
            handler = APILogHandler()
            handler.addFilter(partial(_belongs_to_a_run, handler))
            logger.addHandler(handler)


def _run_in_task(
    stage: str,
    spec: Any,
    inputs: dict[str, Schema],
    options: RunOptions,
    label: str,
    training: TrainingArtifact,
    again: bool = False,
) -> State[StageOutcome]:
    listener, show = stage_progress.get(), progress_artifact(stage)
    store = open_store(options)

    def look() -> None:
        """Nothing new to see."""

    key = stage_key(KNOWN_STAGES[stage], resolve_precision(spec), inputs)
    if stage == "train":
        look = training.follow(store.work_folder(KNOWN_STAGES[stage], key) / LINES_NAME)

    stopping.get().check()

    def on_progress(done: float, total: float, unit: str) -> None:
        stopping.get().check()
        show(done, total, unit)
        look()
        if listener is not None:
            listener(stage, done, total, unit)

    context = TaskRunContext.get()
    assert context is not None
    _running[context.task_run.id] = copy_context()
    shared = options.remote and (again or store.find(KNOWN_STAGES[stage], key) is None)
    try:
        with interrupts_kept(), one_maker(stage, key) if shared else nullcontext():
            outcome = run_stage(store, stage, spec, inputs, options, on_progress, again)
    finally:
        del _running[context.task_run.id]
    if outcome.cached:
        return Completed(name="Cached", message=f"found in the store: {key[:12]}", data=outcome)
    made = "computed again, the same result," if outcome.repeated else "made"
    return Completed(message=f"{made} in {outcome.seconds:.1f} s: {key[:12]}", data=outcome)


def _belongs_to_a_run(handler: APILogHandler, record: logging.LogRecord) -> bool:
    """Whether this thread's own context says which run the line is from; if not, it is sent from the only
    task's context.
    """
    if TaskRunContext.get() is not None or FlowRunContext.get() is not None:
        return True
    if len(_running) == 1:
        [context] = _running.values()
        context.copy().run(handler.emit, record)
    return False
