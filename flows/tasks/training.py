"""Stage `train` as a part of a run: held-out scores by the options, its artifact, and a stop by a rule."""

import logging
from dataclasses import replace
from datetime import UTC, datetime

from prefect.runtime import flow_run

from flows.inputs.held_out import HeldOutPlan
from flows.inputs.specs import Plan
from flows.results.run_report import stage_summaries
from flows.tasks.stage_task import StageRunner
from schemas.errors import StoppedError
from schemas.stages import STAGES
from schemas.stopped import StoppedRun
from schemas.tokenize_corpus import TokenizedCorpus
from schemas.train import TrainingResult
from stages.store.keys import stage_key
from stages.store.stopped import keep_metrics, save_stopped
from stages.training.metrics import HELD_OUT_COLUMNS, TABLE_NAME, read_metrics

log = logging.getLogger(__name__)

SHOWN_COLUMNS = ("step", "loss", "lr_scale", "seconds", "qat_on", "snapshot", *HELD_OUT_COLUMNS)


def train(
    run: StageRunner, plan: Plan, held_out: HeldOutPlan | None, tokenized: TokenizedCorpus
) -> TrainingResult:
    """The trained model. Raises StoppedError, once the stopped run is saved, when a rule ended it."""
    options = run.options if held_out is None else held_out.options(run.options, tokenized)
    try:
        trained: TrainingResult = replace(run, options=options)("train", plan.spec.train, tokenized=tokenized)
    except StoppedError as error:
        _save_stopped(run, plan, tokenized, str(error))
        raise
    if held_out is not None and run.outcomes[-1].cached:
        log.info("train: found in the store, so no held-out text is scored and no rule is tested")
    run.training.draw(read_metrics(run.store.fetch(trained.metrics), SHOWN_COLUMNS))
    return trained


def _save_stopped(run: StageRunner, plan: Plan, tokenized: TokenizedCorpus, reason: str) -> None:
    stage = STAGES["train"]
    folder = run.store.work_folder(stage, stage_key(stage, plan.spec.train, {"tokenized": tokenized}))
    run_id = str(flow_run.id)
    metrics = keep_metrics(run.store, run_id, folder / TABLE_NAME)
    run.training.draw(read_metrics(run.store.fetch(metrics), SHOWN_COLUMNS))
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
