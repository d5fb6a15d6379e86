"""Frontier of a run: its merged model quantized in every way, packaged and scored; bits per byte against
bytes.

    fairway frontier last

Each scheme is the chain quantize → package → check_size → evaluate through the store. So an interrupted call
resumes with the scheme it was at, and a second call computes nothing.
"""

import base64
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.runtime import flow_run
from pydantic import Field

from flows.inputs.form import Options, with_empty_fields
from flows.inputs.parameters import checked_by
from flows.inputs.specs import run_options
from flows.results.frontier_points import frontier_rows, make_folder, write_frontier
from flows.tasks.progress import stage_progress
from flows.tasks.run_end import tell_end
from flows.tasks.showing import only_shown
from flows.tasks.stage_task import stage_runner, stream_logs
from flows.tasks.tries import begin_try
from presets.quantizers import choose_schemes, scheme_settings
from schemas.check_size import SizeReport
from schemas.errors import FairwayError, StageError
from schemas.evaluate import EvaluateSpec, Evaluation
from schemas.frontier import Frontier, FrontierPoint
from schemas.pipeline import PipelineReport
from schemas.quantize import PackedModel
from schemas.quantizer_settings import AnyQuantizer
from schemas.runtime import RunOptions
from stages.execution.runner import StageOutcome
from stages.store.runs import find_run, named_after, require_files
from stages.store.store import Store, open_store

log = logging.getLogger(__name__)

SchemeName = Annotated[str, Field(pattern=r"^\s*[a-z_]+(:[a-z0-9.e-]+)?\s*$")]
SHIPPED = "the run itself"
_HALVES = {"quantize": 0.0, "evaluate": 0.5}  # where in a scheme's work the two stages that take time begin


def _run_name() -> str:
    given = flow_run.parameters
    return named_after(open_store(run_options(given["options"])).runs_root(), given["run"], "frontier")


def _check(given: Mapping[str, Any], options: RunOptions, store: Store) -> None:
    choose_schemes(given["schemes"])
    _check_files(store, find_run(store.runs_root(), given["run"]))


@checked_by(_check)
@with_empty_fields
@flow(
    name="frontier",
    flow_run_name=_run_name,
    persist_result=False,
    on_completion=[tell_end],
    on_failure=[tell_end],
)
def frontier(
    run: str = "last", schemes: tuple[SchemeName, ...] = (), folder: str = "", options: Options = None
) -> Frontier:
    """Quantize the merged model of a run in every way, package and score each result, and draw bits per
    byte against bytes.

    Args:
        run: The run: its name or id, the beginning of either, or "last" for the newest.
        schemes: Quantizations as METHOD:SETTING: gptq:int5, round_to_nearest:int6, ecsq:0.001 (nats a token),
            reference; a method alone stands for several of its settings. None given: twelve of all methods.
        folder: Where table and plots are written on the worker's machine. Empty: frontiers/ and the run's
            name, in the store.
        options: Where and how the stages run; never changes a result.
    """
    stream_logs()
    options = begin_try(options)
    names = choose_schemes(schemes)
    store = open_store(options)
    earlier = find_run(store.runs_root(), run)
    _check_files(store, earlier)
    out = Path(folder).expanduser() if folder else store.root / "frontiers" / earlier.name
    make_folder(out)
    log.info("%s: %d quantizations of the merged model", earlier.name, len(names))
    # The windows and the precision with which the unquantized model was scored.
    scoring = EvaluateSpec(
        scoring=replace(earlier.spec.merge.scoring, stride=0, attention_window=0),
        compute=earlier.spec.merge.compute,
    )
    points, failed = [], dict[str, str]()
    for index, name in enumerate(names):
        settings = scheme_settings(name, earlier.spec.quantize, earlier.merged.model.num_layers)
        try:
            with overall_progress(index, len(names), name):
                points.append(_measure(name, settings, scoring, earlier, options))
        except (FairwayError, OSError, RuntimeError) as error:  # one scheme takes no other with it
            failed[name] = " ".join(str(error).split())
            log.warning("%s: %s", name, failed[name])
            continue
        log.info(
            "%s: %s bytes, %.5f bpb (%+.5f)",
            name,
            f"{points[-1].total_bytes:,}",
            points[-1].bpb,
            points[-1].gap_bpb,
        )
    if not points:
        raise StageError("\n".join(f"{name}: {why}" for name, why in failed.items()))
    shipped = _score(stage_runner(options, f"{earlier.name}-shipped", []), scoring, earlier)
    _tell_done(len(names))
    found = Frontier(
        run_id=earlier.run_id,
        run_name=earlier.name,
        unquantized_bpb=earlier.val_bpb_merged,
        limit_bytes=earlier.size.limit_bytes,
        num_targets=shipped.non_overlapping.num_targets,
        sequence_length=scoring.scoring.sequence_length,
        precision=scoring.compute.precision,
        shipped=_point(
            SHIPPED, earlier.packed, earlier.size, shipped, earlier, _seconds_of(earlier, "quantize")
        ),
        points=tuple(points),
        failed=failed,
    )
    svg = write_frontier(found, out)
    with only_shown("table and plot of the frontier"):
        _publish(found, svg)
    return found


def _measure(
    name: str,
    settings: AnyQuantizer,
    scoring: EvaluateSpec,
    earlier: PipelineReport,
    options: RunOptions,
) -> FrontierPoint:
    outcomes = list[StageOutcome]()
    run = stage_runner(options, f"{earlier.name}-{name}", outcomes)
    spec = earlier.spec.derive(quantize=settings)
    packed = run("quantize", settings, merged=earlier.merged, tokenized=earlier.tokenized)
    package = run("package", spec.package_spec(), packed=packed)
    size = run("check_size", spec.check_size, package=package, packed=packed)
    scores = _score(run, scoring, earlier.derive(package=package))
    return _point(name, packed, size, scores, earlier, outcomes[0].record.provenance.seconds)


def _score(run: Callable[..., Evaluation], scoring: EvaluateSpec, report: PipelineReport) -> Evaluation:
    return run("evaluate", scoring, package=report.package, tokenized=report.tokenized)


def _point(
    name: str,
    packed: PackedModel,
    size: SizeReport,
    scores: Evaluation,
    earlier: PipelineReport,
    quantize_seconds: float,
) -> FrontierPoint:
    return FrontierPoint(
        scheme=name,
        method=packed.method,
        total_bytes=size.total_bytes,
        model_bytes=size.model_bytes,
        code_bytes=size.code_bytes,
        bits_per_parameter=packed.bits_per_parameter,
        bpb=scores.non_overlapping.bpb,
        gap_bpb=scores.non_overlapping.bpb - earlier.val_bpb_merged,
        quantize_seconds=quantize_seconds,
    )


def _seconds_of(report: PipelineReport, stage: str) -> float:
    return next(summary.computed_seconds for summary in report.stages if summary.stage == stage)


def _check_files(store: Store, earlier: PipelineReport) -> None:
    """Refuse a run whose files are gone, before anything is computed."""
    tokenized, package = earlier.tokenized, earlier.package
    needed = (
        earlier.merged.weights,
        tokenized.train_shards,
        tokenized.val_shards,
        tokenized.tokenizer,
        package.script,
        package.blob,
    )
    require_files(store, earlier, needed)


@contextmanager
def overall_progress(index: int, total: int, name: str) -> Iterator[None]:
    """One bar for all schemes: how far the stage at work is becomes a part of its scheme."""
    listener = stage_progress.get()
    if listener is None:
        yield
        return

    def tell(stage: str, done: float, of: float, unit: str) -> None:
        if stage in _HALVES and of > 0:
            # Never whole: that is said once, after the last scheme.
            listener(
                "frontier",
                min(index + _HALVES[stage] + 0.5 * done / of, total - 0.01),
                total,
                f"schemes, {name}: {stage}",
            )

    token = stage_progress.set(tell)
    try:
        yield
    finally:
        stage_progress.reset(token)


def _tell_done(total: int) -> None:
    if (listener := stage_progress.get()) is not None:
        listener("frontier", total, total, "schemes")


def _publish(found: Frontier, svg: str) -> None:
    create_table_artifact(
        key="frontier", table=frontier_rows(found), description=f"quantizations of {found.run_name}"
    )
    picture = base64.b64encode(svg.encode()).decode()
    create_markdown_artifact(
        key="frontier-plot",
        markdown=f"# Bits per byte against bytes\n\n![frontier](data:image/svg+xml;base64,{picture})",
        description="each quantization's score and size",
    )
