"""Other quantization settings for the merged model of an earlier run; nothing before quantization is run.

    fairway requantize last --bits int4 --bits int5          one variant for each combination, side by side

Each variant is a flow run of its own with its own report; this run compares them.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
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
    clip_override,
    format_overrides,
    number_field,
    with_empty_fields,
)
from flows.inputs.ignored import ANY_INTEGER, as_given, refuse_foreign, refuse_ignored, why_ignored
from flows.inputs.specs import Plan, run_options, with_changes
from flows.pipeline import ship
from flows.results.comparison import comparison_rows, publish_comparison
from flows.results.endings import reason
from flows.results.tables import Row
from flows.tasks.run_end import tell_end
from flows.tasks.showing import only_shown
from flows.tasks.stage_task import stage_runner, stream_logs
from flows.tasks.tries import begin_try
from schemas.errors import SpecError, StageError
from schemas.overrides import foreign_settings
from schemas.pipeline import PipelineReport
from schemas.quantize import QuantizeMethod
from schemas.quantizer_settings import Ecsq
from schemas.runtime import RunOptions
from schemas.stages import STAGES
from stages.execution.runner import StageOutcome
from stages.processes.stopping import Stopping
from stages.store.runs import find_run, load_report, named_after, require_files
from stages.store.store import Store, open_store

log = logging.getLogger(__name__)

BEFORE_QUANTIZE = ("tokenize_corpus", "train", "merge")
CHANGEABLE = ("quantize", "package", "check_size", "evaluate", "publish")
MAX_VARIANTS = 32
FITTING = Ecsq.method
"""The method that meets a limit."""


@dataclass(frozen=True)
class Variation:
    """A variant: its name, the settings of each field that makes it, and all of its settings, as
    dotted.name=value.
    """

    name: str
    fields: Mapping[str, Sequence[str]]
    settings: list[str]


def _run_name() -> str:
    given = flow_run.parameters
    store = open_store(run_options(given["options"]))
    return named_after(store.runs_root(), given["run"], "requantized", fitting=True)


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
    earlier = find_run(store.runs_root(), run, fitting=True)
    common = [] if zstd_level is None else [f"quantize.zstd_level={zstd_level}"]
    if limit_bytes is not None:
        common += [
            f"quantize.method={FITTING}",
            f"quantize.fit.limit_bytes={limit_bytes}",
            "quantize.fit.code_bytes=null",
        ]
        if bits or clip_grids or set(methods) - {FITTING}:
            raise SpecError(
                f"limit_bytes = {limit_bytes}: is met by the method {FITTING}, which takes neither bits nor "
                "clip_grids; choose none of them and no other method"
            )
    rules = earlier.spec.quantize.rules
    asked = {
        name: wanted
        for name, wanted in (("edge_bits", edge_bits), ("embedding_format", embedding_format))
        if wanted != AS_IT_IS
    }
    fields = {
        f"{name} = {wanted}": format_overrides("quantize.rules", rules, {name: wanted})
        for name, wanted in asked.items()
    }
    common += [setting for settings in fields.values() for setting in settings]
    if "embedding_format" not in asked and (limit_bytes is not None or set(methods) == {FITTING}):
        common += format_overrides("quantize.rules", rules, {"embedding_format": ANY_INTEGER})
    variants = _variants(earlier, bits, clip_grids, methods, common, overrides)
    if limit_bytes is not None:
        variants = [
            Variation(f"at most {limit_bytes:,} bytes", item.fields, item.settings) for item in variants
        ]
    for item in variants:
        refuse_foreign(earlier.spec, item.fields, item.settings)
    plans = [Plan(earlier.preset, with_changes(earlier.spec, item.settings)) for item in variants]
    _check(store, earlier, variants, plans, fields, overrides)
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


def _variants(
    earlier: PipelineReport,
    bits: Sequence[str],
    clip_grids: Sequence[str],
    methods: Sequence[str],
    common: list[str],
    overrides: Sequence[str],
) -> list[Variation]:
    """Every combination of what was chosen, each with `common` and with the `overrides` that it can have."""
    rules = earlier.spec.quantize.rules
    axes = [
        [
            (wanted, f"bits = {wanted}", format_overrides("quantize.rules", rules, {"bits": wanted}))
            for wanted in bits
        ],
        [
            (f"clips {grid.strip()}", f"clip_grids = {grid}", [clip_override(grid)])
            for grid in clip_grids
            if grid.strip()
        ],
        [(method, f"methods = {method}", [f"quantize.method={method}"]) for method in methods],
    ]
    variants = []
    for combination in product(*(axis for axis in axes if axis)):
        shared = [*common, *overrides]
        name = ", ".join(label for label, _, _ in combination) or ", ".join(shared) or "the same settings"
        fields = {field: settings for _, field, settings in combination}
        own = [setting for settings in fields.values() for setting in settings]
        variants.append(Variation(name, fields, [*own, *shared]))
    if len(variants) > MAX_VARIANTS:
        raise SpecError(
            f"bits × clip_grids × methods = {len(variants)} variants: at most {MAX_VARIANTS} at "
            "once; choose fewer"
        )
    return _without_those_of_others(earlier, variants, overrides)


def _without_those_of_others(
    earlier: PipelineReport, variants: Sequence[Variation], overrides: Sequence[str]
) -> list[Variation]:
    """The variants, each without those of `overrides` that only other variants' methods have.

    One that no variant's method has stays, and is refused where it is applied.
    """
    foreign = [foreign_settings(earlier.spec, item.settings) for item in variants]
    of_some = set(overrides) - set(foreign[0]).intersection(*foreign)
    return [
        replace(item, settings=[text for text in item.settings if text not in of_some or text not in others])
        for item, others in zip(variants, foreign, strict=True)
    ]


def _check(
    store: Store,
    earlier: PipelineReport,
    variants: list[Variation],
    plans: list[Plan],
    fields: Mapping[str, Sequence[str]],
    overrides: Sequence[str],
) -> None:
    """Refuse settings that this flow would not carry out, and an earlier run whose files are gone, before
    anything runs.

    `fields`: the filled fields that all variants share, with their settings. A field must count in every
    variant that has it; an override of all variants is refused where no variant has a use for it.
    """
    specs = [plan.spec for plan in plans]
    for item, spec in zip(variants, specs, strict=True):
        for section in ("tokenize", "train", "merge"):
            if getattr(spec, section) != getattr(earlier.spec, section):
                named = next(change for change in item.settings if change.startswith(f"{section}."))
                raise SpecError(
                    f"{named}: is decided before quantization; requantize changes "
                    f"{', '.join(CHANGEABLE)}. Use `fairway run`"
                )
        refuse_ignored(earlier.spec, spec, {**item.fields, **fields})
    for given, settings in as_given(overrides).items():
        users = [spec for spec, item in zip(specs, variants, strict=True) if settings[0] in item.settings]
        if all(why_ignored(earlier.spec, spec, settings[0]) for spec in users):
            refuse_ignored(earlier.spec, users[0], {given: settings})
    needed = (
        earlier.merged.weights,
        earlier.tokenized.train_shards,
        earlier.tokenized.val_shards,
        earlier.tokenized.tokenizer,
        earlier.trained.metrics,
    )
    require_files(store, earlier, needed)
