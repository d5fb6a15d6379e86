"""Export: write a finished run as a submission folder in the official form (`fairway export RUN`)."""

import logging
import shutil
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from schemas.errors import SpecError, StageError
from schemas.evaluate import Score
from schemas.package import BLOB_NAME, SCRIPT_NAME
from schemas.pipeline import PipelineReport
from schemas.submission import (
    INFO_NAME,
    README_NAME,
    REQUIREMENTS_NAME,
    About,
    RuleResult,
    SeedResult,
    SubmissionInfo,
)
from stages.store.runs import RUN_FILE_NAME
from stages.store.store import Store
from stages.store.whole_folder import refuse_used, whole_folder
from stages.submission.rules import check_folder
from stages.submission.texts import log_name, readme, requirements, train_log

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """A written folder, the content of its submission.json, and the verdict of each rule."""

    folder: Path
    info: SubmissionInfo
    rules: tuple[RuleResult, ...]


def export_submission(store: Store, reports: Sequence[PipelineReport], about: About, out: Path) -> Exported:
    """Write the folder of the first report, with the results of all; `out` appears whole, or not at all.

    Raises SpecError when `out` is in use or a file of a run is gone, StageError when the written folder
    contradicts itself.
    """
    main = reports[0]
    refuse_used(out)
    needed = [main.package, *(report.trained.metrics for report in reports)]
    for problem in store.problems(needed):
        raise SpecError(
            f"RUN = {main.name}: {problem}. Run the pipeline with its settings again: what is "
            "missing is made again"
        )
    info = _info(reports, about)
    with whole_folder(out) as building:
        rules = _write_folder(building, store, reports, info)
    log.info(
        "%s: %s bytes, %d of %d rules pass",
        out,
        f"{info.bytes_total:,}",
        sum(r.verdict == "pass" for r in rules),
        len(rules),
    )
    return Exported(out, info, rules)


def _write_folder(
    folder: Path, store: Store, reports: Sequence[PipelineReport], info: SubmissionInfo
) -> tuple[RuleResult, ...]:
    """All files of the submission; returns how it stands with the rules, as its README says too.

    Raises StageError when the README with the rules in it is judged otherwise than without them.
    """
    main = reports[0]
    shutil.copyfile(store.fetch(main.package.script), folder / SCRIPT_NAME)
    shutil.copyfile(store.fetch(main.package.blob), folder / BLOB_NAME)
    (folder / INFO_NAME).write_text(info.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (folder / REQUIREMENTS_NAME).write_text(requirements(), encoding="utf-8")
    run_file = store.root / "runs" / main.run_id / RUN_FILE_NAME
    if run_file.exists():  # not of an earlier version's run, nor of another machine's
        shutil.copyfile(run_file, folder / RUN_FILE_NAME)
    for report in reports:
        store.fetch(report.trained.metrics)
        text = train_log(report, store.root)
        (folder / log_name(report.spec.train.seed)).write_text(text, encoding="utf-8")
    (folder / README_NAME).write_text(readme(info, main), encoding="utf-8")
    rules = check_folder(folder)
    (folder / README_NAME).write_text(readme(info, main, rules), encoding="utf-8")
    if check_folder(folder) != rules:
        raise StageError(
            f"RUN = {main.name}: the README with the checks in it is judged otherwise than without them"
        )
    return tuple(rules)


def _info(reports: Sequence[PipelineReport], about: About) -> SubmissionInfo:
    main, compute = reports[0], reports[0].spec.train.compute
    model, merged = main.spec.train.model, [report.merged.score for report in reports]
    blurb = about.blurb or (
        f"{model.num_layers} layers of width {model.model_dim}, {main.packed.num_parameters:,} parameters, "
        f"averaged ({main.merged.method}) and quantized by {main.packed.method}, {main.size.total_bytes:,} "
        "bytes."
    )
    return SubmissionInfo(
        author=about.author,
        github_id=about.github_id,
        name=about.name,
        blurb=blurb,
        date=datetime.now(UTC).date().isoformat(),
        val_loss=_rounded_mean(_best(report).loss for report in reports),
        val_bpb=_rounded_mean(_best(report).bpb for report in reports),
        pre_quant_val_loss=_rounded_mean(score.loss for score in merged),
        pre_quant_val_bpb=_rounded_mean(score.bpb for score in merged),
        post_quant_val_bpb_non_overlapping=_rounded_mean(report.val_bpb_quantized for report in reports),
        step_stop=main.trained.steps,
        wallclock_seconds=round(main.trained.timings.training_seconds, 3),
        eval_time_seconds=_evaluation_seconds(main),
        bytes_total=main.size.total_bytes,
        bytes_model=main.package.blob.num_bytes,
        bytes_code=main.package.script.num_bytes,
        blob_sha256=main.package.blob.sha256,
        code_sha256=main.package.script.sha256,
        hardware=f"{compute.world_size} × {compute.device}",
        eval_sequence_length=main.spec.evaluate.scoring.sequence_length,
        eval_stride=main.spec.evaluate.scoring.stride,
        eval_windows=main.spec.evaluate.scoring.windows,
        eval_attention_window=main.spec.evaluate.scoring.attention_window,
        eval_batch_tokens=main.spec.evaluate.scoring.batch_tokens,
        seed=main.spec.train.seed,
        seeds=tuple(sorted(report.spec.train.seed for report in reports)),
        seed_results={
            str(report.spec.train.seed): _seed_result(report)
            for report in sorted(reports, key=lambda item: item.spec.train.seed)
        },
    )


def _seed_result(report: PipelineReport) -> SeedResult:
    return SeedResult(
        val_loss=round(_best(report).loss, 8),
        val_bpb=round(_best(report).bpb, 8),
        pre_quant_val_bpb=round(report.val_bpb_merged, 8),
        wallclock_seconds=round(report.trained.timings.training_seconds, 3),
        eval_time_seconds=_evaluation_seconds(report),
        bytes_total=report.size.total_bytes,
        blob_sha256=report.package.blob.sha256,
    )


def _rounded_mean(values: Iterable[float]) -> float:
    return round(statistics.fmean(values), 8)


def _best(report: PipelineReport) -> Score:
    return report.evaluation.sliding or report.evaluation.non_overlapping


def _evaluation_seconds(report: PipelineReport) -> float:
    """Seconds of the whole stage when it ran, including the start of processes and reading the blob."""
    return round(next(stage.computed_seconds for stage in report.stages if stage.stage == "evaluate"), 3)
