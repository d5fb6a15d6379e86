"""From text to a scored artifact: the whole chain as one Prefect flow.

    fairway run --preset demo          or          from flows.pipeline import pipeline; pipeline("demo")

A stage whose result is in the store already shows as `Cached` and is not run.
"""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from flows.inputs.form import (
    SETTINGS,
    Assignment,
    FormValue,
    Options,
    Preset,
    StageName,
    with_empty_fields,
    with_setting_fields,
)
from flows.inputs.held_out import HeldOutPlan, plan_held_out
from flows.inputs.own_text import refuse_small_text
from flows.inputs.parameters import checked_by
from flows.inputs.specs import Plan, check_quantizer, plan_run, refuse_small_limit, run_file_of
from flows.planning.gpus import check_run_gpus
from flows.results.run_report import (
    fit_message,
    over_limit_message,
    publish_artifacts,
    publish_spec,
    report_address,
    stage_summaries,
)
from flows.tasks.plan_artifact import show_plan
from flows.tasks.run_end import set_labels, tell_end
from flows.tasks.showing import only_shown
from flows.tasks.stage_task import StageRunner, stage_runner
from flows.tasks.tokenizing import tokenize
from flows.tasks.training import tracking_job, train
from flows.tasks.tries import begin_try
from flows.tracking.reporting import check_tracker, reporting_to
from schemas.errors import SpecError, StageError
from schemas.merge import MergedModel
from schemas.pipeline import PipelineReport
from schemas.results import RunResults
from schemas.runtime import RunOptions
from schemas.tokenize_corpus import CorpusManifest, TokenizedCorpus
from schemas.train import TrainingResult
from stages.corpora import locate
from stages.processes.hosts import check_launcher
from stages.scoring.isolated import check_isolated
from stages.store.runs import save_report, save_run_file
from stages.store.store import Store

log = logging.getLogger(__name__)


def _run_name() -> str:
    given = flow_run.parameters
    try:
        return plan_run(given["preset"], given["overrides"], given).label
    except SpecError:
        return f"{given['preset']}-refused"  # the flow itself says why


def check_run(plan: Plan, options: RunOptions, store: Store) -> tuple[HeldOutPlan | None, CorpusManifest]:
    """What the options ask of the training, and the corpus.

    Raises SpecError for what would end the run before its first stage.
    """
    spec = plan.spec
    refuse_small_text(spec)
    check_launcher(spec.train.compute, options)
    check_isolated()
    check_tracker(options.report_to)
    check_run_gpus(plan, store)
    refuse_small_limit(plan)
    held_out = plan_held_out(options, spec, store)
    return held_out, locate(spec.tokenize, store.hashes, store.root / "cache" / "hub")


def _check(given: Mapping[str, Any], options: RunOptions, store: Store) -> None:
    check_run(plan_run(given["preset"], given["overrides"], given), options, store)


@checked_by(_check)
@with_empty_fields
@flow(
    name="pipeline",
    flow_run_name=_run_name,
    persist_result=False,
    on_completion=[tell_end],
    on_failure=[tell_end],
)
@with_setting_fields(*SETTINGS)
def pipeline(
    preset: Preset = "demo",
    *,
    overrides: tuple[Assignment, ...] = (),
    again: tuple[StageName, ...] = (),
    options: Options = None,
    **fields: FormValue,
) -> PipelineReport:
    """Text in, a scored, quantized and size-checked artifact out.

    Args:
        preset: What to start from: smoke (seconds), demo and medium (minutes on two cores), record,
            reference and winner (eight GPUs), or winner-1gpu (one).
        text: Your own text: a file, folder or pattern of the machine that runs it, or owner/dataset on the
            Hugging Face hub. Empty: the preset's.
        bits: Format of the matrices, in training under QAT and in the blob. "as it is": the preset's (int6).
        edge_bits: The same for the matrices of the first and last blocks. "as it is": the preset's (int8).
        embedding_format: The same for the token embedding. "as it is": the preset's (fp16).
        clip_candidates: Clip ratios above 0 up to 1 that gptq_lite tries for each row, with commas, as 1.0,
            0.95, 0.9. Empty: the preset's (eleven from 1.0 to 0.7).
        overrides: Any other setting, one an entry, as dotted.name=value; `fairway describe PRESET` lists all.
        again: Stages that are computed even if their results are stored. An equal result leaves the later
            stages stored; another one ends the run with an error.
        options: Where and how the stages run; never changes a result.
    """
    plan, options = plan_run(preset, overrides, fields), begin_try(options)
    run = stage_runner(options, plan.label, [], again)
    spec, store = plan.spec, run.store
    held_out, manifest = check_run(plan, options, store)
    show_plan(plan, store, options)
    tokenized = tokenize(run, spec.tokenize, manifest)
    check_quantizer(plan, tokenized)
    with reporting_to(tracking_job(run, plan, tokenized)) as reporting:
        trained = train(run, plan, held_out, tokenized, reporting)
        merged = run("merge", spec.merge, trained=trained, tokenized=tokenized)
        run.training.add_score("merged model", merged.score)
        return ship(plan, run, tokenized, trained, merged)


def ship(
    plan: Plan, run: StageRunner, tokenized: TokenizedCorpus, trained: TrainingResult, merged: MergedModel
) -> PipelineReport:
    """The chain's second half, from the merged model to the saved report.

    Raises StageError when the artifact is over its limit, after the report is saved.
    """
    spec = plan.spec
    packed = run("quantize", plan.quantize, merged=merged, tokenized=tokenized)
    package = run("package", spec.package_spec(), packed=packed)
    size = run("check_size", spec.check_size, package=package, packed=packed)
    if (message := fit_message(plan.quantize, size)) is not None:
        log.info("%s", message)
    evaluation = run("evaluate", spec.evaluate, package=package, tokenized=tokenized)
    run.training.add_score("quantized model", evaluation.non_overlapping)
    results = RunResults(
        tokenized=tokenized,
        trained=trained,
        merged=merged,
        packed=packed,
        package=package,
        size=size,
        evaluation=evaluation,
    )
    audit = run("audit", spec, **results.by_name())
    published = run("publish", publish_spec(spec, plan.label, run.outcomes), **results.by_name(), audit=audit)
    report = PipelineReport(
        run_id=str(flow_run.id),
        name=plan.label,
        preset=plan.preset,
        created_at=run.started.isoformat(timespec="seconds"),
        seconds=(datetime.now(UTC) - run.started).total_seconds(),
        spec=spec,
        stages=stage_summaries(run.outcomes),
        **results.by_name(),
        audit=audit,
        published=published,
    )
    save_report(run.store.root, report)
    run.store.share_report(report)
    run.store.bring((report.package, report.published))  # what the run is about, whoever made it
    _write_run_file(plan, report, run.store.root)
    with only_shown("the artifacts of the run"):
        publish_artifacts(report, run.store.root)
    sliding = report.val_bpb_quantized_sliding
    set_labels(
        val_bpb=report.val_bpb_quantized if sliding is None else sliding,
        bytes=size.total_bytes,
        limit_bytes=size.limit_bytes,
        report=report_address(report, run.store.root),
    )
    if not size.fits:
        raise StageError(over_limit_message(size))
    return report


def _write_run_file(plan: Plan, report: PipelineReport, store: Path) -> None:
    try:
        text = run_file_of(plan, f"The run {plan.label}")
    except SpecError as error:  # its preset has changed since the run that it goes on from
        log.warning("no run file is written: %s", error)
        return
    save_run_file(store, report, text)
