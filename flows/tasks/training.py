"""Stage `train` as a part of a run: held-out scores by the options, its artifact, and a stop by a rule."""

import logging
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from prefect.runtime import flow_run

from flows.inputs.held_out import HeldOutPlan
from flows.inputs.specs import Plan
from flows.results.run_report import stage_summaries
from flows.tasks.stage_task import StageRunner
from flows.tracking.job import TrackingJob
from flows.tracking.reporting import Reporting
from schemas.errors import StoppedError
from schemas.introspect import describe_fields
from schemas.stages import STAGES
from schemas.stopped import StoppedRun
from schemas.tokenize_corpus import TokenizedCorpus
from schemas.train import TrainingResult
from stages.store.keys import stage_key
from stages.store.machine import resolve_precision
from stages.store.stopped import keep_metrics, save_stopped
from stages.training.metrics import HELD_OUT_COLUMNS, LINES_NAME, TABLE_NAME, read_metrics

log = logging.getLogger(__name__)

SHOWN_COLUMNS = ("step", "loss", "lr_scale", "seconds", "qat_on", "snapshot", *HELD_OUT_COLUMNS)


def train(
    run: StageRunner,
    plan: Plan,
    held_out: HeldOutPlan | None,
    tokenized: TokenizedCorpus,
    reporting: Reporting | None = None,
) -> TrainingResult:
    """The trained model. Raises StoppedError, once the stopped run is saved, when a rule ended it."""
    options = run.options if held_out is None else held_out.options(run.options, tokenized)
    try:
        trained: TrainingResult = replace(run, options=options)("train", plan.spec.train, tokenized=tokenized)
    except StoppedError as error:
        table = _save_stopped(run, plan, tokenized, str(error))
        if reporting is not None:
            reporting.trained(table)
        raise
    if held_out is not None and run.outcomes[-1].cached:
        log.info("train: found in the store, so no held-out text is scored and no rule is tested")
    table = run.store.fetch(trained.metrics)
    run.training.draw(read_metrics(table, SHOWN_COLUMNS))
    if reporting is not None:
        reporting.trained(table)
    return trained


def tracking_job(run: StageRunner, plan: Plan, tokenized: TokenizedCorpus) -> TrackingJob | None:
    """What the tracker of the options gets of this training; None without one.

    Its name has the training's key: other code or another kind of machine is another run in the tracker.
    """
    tracker = run.options.report_to
    if tracker is None:
        return None
    folder, key = _work_folder(run, plan, tokenized)
    return TrackingJob(
        tracker=tracker,
        name=f"{plan.label}-{key[:8]}",
        lines=folder.absolute() / LINES_NAME,
        folder=run.store.root.absolute() / "tracking" / tracker,
        config={info.name: info.value for info in describe_fields(plan.spec)},
    )


def _work_folder(run: StageRunner, plan: Plan, tokenized: TokenizedCorpus) -> tuple[Path, str]:
    """Where the training works, and its key."""
    stage = STAGES["train"]
    key = stage_key(stage, resolve_precision(plan.spec.train), {"tokenized": tokenized})
    return run.store.work_folder(stage, key), key


def _save_stopped(run: StageRunner, plan: Plan, tokenized: TokenizedCorpus, reason: str) -> Path:
    folder, _ = _work_folder(run, plan, tokenized)
    run_id = str(flow_run.id)
    metrics = keep_metrics(run.store, run_id, folder / TABLE_NAME)
    table = run.store.fetch(metrics)
    run.training.draw(read_metrics(table, SHOWN_COLUMNS))
    stopped = StoppedRun(
        run_id=run_id,
        name=plan.label,
        preset=plan.preset,
        created_at=run.started.isoformat(timespec="seconds"),
        seconds=(datetime.now(UTC) - run.started).total_seconds(),
        reason=reason,
        spec=plan.spec,
        stages=stage_summaries(run.outcomes),
        metrics=metrics,
    )
    save_stopped(run.store.root, stopped)
    return table
