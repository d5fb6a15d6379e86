"""Other quantization settings for the merged model of an earlier run; nothing before quantization is run.

    fairway requantize last --bits int4 --bits int5          one variant for each combination, side by side

Each variant is a flow run of its own with its own report; this run compares them.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from pydantic import Field

from flows.inputs.form import (
    AS_IT_IS,
    Assignment,
    Bits,
    ClipGrid,
    FormatOrNone,
    Options,
    number_field,
    with_empty_fields,
)
from flows.inputs.parameters import checked_by
from flows.inputs.requantization import Asked
from flows.inputs.specs import Plan, run_options, with_changes
from flows.pipeline import ship
from flows.results.comparison import comparison_rows, publish_comparison
from flows.results.endings import reason
from flows.results.tables import Row
from flows.tasks.run_end import tell_end
from flows.tasks.showing import only_shown
from flows.tasks.stage_task import stage_runner, stream_logs
from flows.tasks.tries import begin_try
from schemas.errors import StageError
from schemas.pipeline import PipelineReport
from schemas.quantize import QuantizeMethod
from schemas.runtime import RunOptions
from schemas.stages import STAGES
from stages.execution.runner import StageOutcome
from stages.processes.stopping import Stopping
from stages.store.runs import find_run, load_report, named_after
from stages.store.store import open_store

log = logging.getLogger(__name__)

BEFORE_QUANTIZE = ("tokenize_corpus", "train", "merge")


def _run_name() -> str:
    given = flow_run.parameters
    store = open_store(run_options(given["options"]))
    return named_after(store.runs_root(), given["run"], "requantized", fitting=True)


@checked_by(lambda given, _, store: Asked.of(given).variants(store))
@with_empty_fields
@flow(
    name="requantize",
    flow_run_name=_run_name,
    persist_result=False,
    on_completion=[tell_end],
    on_failure=[tell_end],
)
def requantize(
    run: str = "last",
    bits: tuple[Bits, ...] = (),
    edge_bits: FormatOrNone = AS_IT_IS,
    embedding_format: FormatOrNone = AS_IT_IS,
    clip_grids: tuple[ClipGrid, ...] = (),
    methods: tuple[QuantizeMethod, ...] = (),
    limit_bytes: Annotated[int | None, Field(ge=1), number_field("integer", minimum=1)] = None,
    zstd_level: Annotated[
        int | None, Field(ge=1, le=22), number_field("integer", minimum=1, maximum=22)
    ] = None,
    overrides: tuple[Assignment, ...] = (),
    at_once: Annotated[int, Field(ge=1, le=8)] = 2,
    options: Options = None,
) -> tuple[list[Row], list[PipelineReport]]:
    """Quantize the merged model of an earlier run again, score each result, and compare them.

    Args:
        run: The earlier run: its name or id, the beginning of either, or "last" for the last successful one.
        bits: Formats of the matrices. Several: one variant each. None chosen: as the run had it.
        edge_bits: Format of the matrices of the first and last blocks, in every variant.
        embedding_format: Format of the token embedding, in every variant. "as it is" with nothing but ecsq:
            coded like the matrices.
        clip_grids: Clip ratios above 0 up to 1 that gptq_lite tries, with commas, as 1.0, 0.95, 0.9. Several
            entries: one variant each.
        methods: How matrices are quantized. Several: one variant each. None chosen: as the run had it.
        limit_bytes: The best quantization whose package, script included, is at most so many bytes (method
            ecsq). Empty: no fitting.
        zstd_level: Compression of the blob, 1 to 22. Empty: as the run had it.
        overrides: Any other setting of quantize, package, check_size, evaluate or publish, as
            dotted.name=value.
        at_once: Variants that run side by side, 1 to 8.
        options: Where and how the stages run; never changes a result.
    """
    stream_logs()
    options = begin_try(options)
    store = open_store(options)
    asked = Asked(
        run,
        bits,
        edge_bits,
        embedding_format,
        clip_grids,
        methods,
        limit_bytes,
        zstd_level,
        overrides,
    )
    found = asked.variants(store)
    earlier, variants, plans = found.earlier, found.items, found.plans
    log.info(
        "%s: %d variants of the quantization, %d side by side",
        earlier.name,
        len(variants),
        min(at_once, len(variants)),
    )
    states = _run_variants(
        [
            partial(_run_variant, earlier.run_id, item.settings, options, plan.label)
            for item, plan in zip(variants, plans, strict=True)
        ],
        at_once,
    )
    reports = [load_report(store.root, str(state.state_details.flow_run_id)) for state in states]
    compared = [
        (item.name, report, state) for item, report, state in zip(variants, reports, states, strict=True)
    ]
    rows = comparison_rows(earlier, compared)
    with only_shown("table and plot of the comparison"):
        publish_comparison(earlier, compared, rows)
    finished = [report for report in reports if report is not None]
    failed = [f"{name}: {reason(state.message)}" for name, report, state in compared if report is None]
    if failed or not any(report.size.fits for report in finished):
        raise StageError("\n".join(failed) or "no variant fits the limit: take fewer bits")
    return rows, finished


@flow(name="requantized", flow_run_name="{name}", persist_result=False)
def requantized(run_id: str, overrides: list[str], options: RunOptions, name: str) -> PipelineReport:
    """One variant: the chain from `quantize` on, with the earlier results of the run `run_id` as they lie
    in the store.
    """
    earlier = find_run(open_store(options).runs_root(), run_id)
    plan = Plan(earlier.preset, with_changes(earlier.spec, overrides))
    run = stage_runner(options, name, [])
    for done in earlier.stages:
        if done.stage in BEFORE_QUANTIZE and (record := run.store.record(STAGES[done.stage], done.key)):
            run.outcomes.append(StageOutcome(record, cached=True, seconds=0.0))
    return ship(plan, run, earlier.tokenized, earlier.trained, earlier.merged)


def _run_variants(
    variants: Sequence[Callable[[], State[PipelineReport]]], at_once: int
) -> list[State[PipelineReport]]:
    """Run all, `at_once` side by side, each in a copy of this context.

    A cancel or Ctrl-C here ends them as well.
    """
    stop = Stopping()
    with ThreadPoolExecutor(at_once) as pool:
        running = [pool.submit(stop.wrap(variant)) for variant in variants]
        try:
            return [future.result() for future in running]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            stop.stop_all()
            raise


def _run_variant(run_id: str, overrides: list[str], options: RunOptions, name: str) -> State[PipelineReport]:
    return requantized(run_id, overrides, options, name, return_state=True)
