"""Requantizing an earlier run: what is run, what is compared, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter

from flows.inputs.requantization import _variants
from flows.inputs.specs import plan_from
from flows.inputs.starts import start_of_file
from flows.requantize import requantize
from schemas.errors import SpecError, StageError
from schemas.runtime import RunOptions
from stages.store.runs import RUN_FILE_NAME, load_report


def test_variants_get_reports_of_their_own_and_nothing_before_quantize_runs(
    smoke_run: Any, smoke_store: Path
) -> None:
    earlier = smoke_run.report
    state = requantize(
        earlier.run_id,
        bits=("int8",),
        clip_grids=("1.0",),
        overrides=("quantize.zstd_level=3",),
        options=_options(smoke_store),
        return_state=True,
    )
    rows, [report] = state.result()
    assert [row["variant"] for row in rows] == ["the earlier run", "int8, clips 1.0"]
    assert load_report(smoke_store, report.run_id) == report
    assert report.merged == earlier.merged
    assert report.spec.train == earlier.spec.train
    assert {rule.pattern: rule.format for rule in report.spec.quantize.rules}["*.weight"] == "int8"
    assert (report.spec.quantize.clip_candidates, report.spec.quantize.zstd_level) == ((1.0,), 3)
    assert [stage.stage for stage in report.stages] == [stage.stage for stage in earlier.stages]
    assert [stage.key for stage in report.stages[:3]] == [stage.key for stage in earlier.stages[:3]]
    with get_client(sync_client=True) as client:
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [report.run_id]}))
    assert {task.name.split("-")[0] for task in tasks} == {
        "quantize",
        "package",
        "check_size",
        "evaluate",
        "audit",
        "publish",
    }


def test_a_limit_is_met_within_a_thousandth_script_included(fitted: Any) -> None:
    limit, report = fitted.limit_bytes, fitted.report
    assert [row["variant"] for row in fitted.rows] == ["the earlier run", f"at most {limit:,} bytes"]
    assert 0.999 * limit <= report.size.total_bytes <= limit
    assert report.packed.method == "ecsq"
    assert {tensor.format for tensor in report.packed.tensors} == {"coded", "fp32"}


def test_a_fitted_run_leaves_a_run_file_that_repeats_it(fitted: Any, smoke_store: Path) -> None:
    """Its training rounded to the grid of another method, which the file names."""
    report = fitted.report
    start = start_of_file(smoke_store / "runs" / report.run_id / RUN_FILE_NAME)
    assert plan_from(start, ()).spec == report.spec


def test_a_limit_that_cannot_be_met_is_answered_with_the_smallest(smoke_run: Any, smoke_store: Path) -> None:
    limit = smoke_run.report.size.code_bytes + 1_000
    state = requantize(
        smoke_run.report.run_id, limit_bytes=limit, options=_options(smoke_store), return_state=True
    )
    with pytest.raises(
        StageError,
        match=rf"^at most {limit:,} bytes: quantize\.fit\.limit_bytes = {limit}: .* smallest possible is ",
    ):
        state.result()


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"overrides": ("train.seed=2",)}, r"train\.seed=2: is decided before quantization"),
        ({"overrides": ("quantize.methd=x",)}, r"quantize\.method"),
        (
            {
                "bits": ("int2", "int3", "int4", "int5", "int6", "int7"),
                "clip_grids": tuple(f".{n}" for n in range(1, 8)),
            },
            "42 variants",
        ),
        (
            {"limit_bytes": 1_000},
            r"quantize\.fit\.limit_bytes = 1000: the script alone has [\d,]+ bytes; .*compressed=true",
        ),
        (
            {"limit_bytes": 1_000, "overrides": ("package.compressed=true",)},
            r"quantize\.fit\.limit_bytes = 1000: the script alone has [\d,]+ bytes; allow more$",
        ),
        ({"limit_bytes": 100_000, "bits": ("int4",)}, "limit_bytes = 100000: is met by the method ecsq"),
        (
            {"methods": ("gptq_lite", "ecsq"), "bits": ("int4",)},
            r"bits = int4: method ecsq chooses its steps itself\. .*--method gptq_lite.*loss_budget_nats",
        ),
        (
            {"methods": ("ecsq",), "edge_bits": "int8"},
            "edge_bits = int8: method ecsq chooses its steps itself",
        ),
        (
            {"methods": ("ecsq",), "embedding_format": "int4"},
            "embedding_format = int4: method ecsq chooses its steps itself",
        ),
        (
            {"methods": ("round_to_nearest",), "clip_grids": ("0.9",)},
            r"clip_grids = 0\.9: .* = round_to_nearest has no such setting",
        ),
        (
            {"overrides": ("quantize.method=round_to_nearest", "quantize.clip_candidates=[0.9]")},
            r"quantize\.clip_candidates: .* = round_to_nearest has no such setting",
        ),
        (
            {"overrides": ("quantize.method=ecsq",), "bits": ("int4",)},
            "bits = int4: method ecsq chooses its steps itself",
        ),
        (
            {"methods": ("gptq", "gptq_lite"), "overrides": ("quantize.loss_budget_nats=0.1",)},
            r"quantize\.loss_budget_nats: .* gptq has no such setting. It belongs to quantize\.method = ecsq",
        ),
        (
            {"overrides": ("quantize.fit.limit_bytes=90000",)},
            r"quantize\.fit\.limit_bytes: .*It belongs to quantize\.method = ecsq",
        ),
    ],
)
def test_what_it_would_not_carry_out_is_refused(
    asked: dict, named: str, smoke_run: Any, smoke_store: Path
) -> None:
    state = requantize(smoke_run.report.run_id, options=_options(smoke_store), return_state=True, **asked)
    with pytest.raises(SpecError, match=named):
        state.result()


def test_an_override_counts_for_those_methods_that_have_the_setting(smoke_run: Any) -> None:
    overrides = ("quantize.loss_budget_nats=0.1", "quantize.zstd_level=3")
    gptq, ecsq = _variants(smoke_run.report, (), (), ("gptq", "ecsq"), [], overrides)
    assert gptq.settings == ["quantize.method=gptq", "quantize.zstd_level=3"]
    assert ecsq.settings == ["quantize.method=ecsq", *overrides]
    [alone] = _variants(smoke_run.report, (), (), ("gptq",), [], overrides)
    assert alone.settings == ["quantize.method=gptq", *overrides]  # refused where it is applied


def test_a_model_that_is_gone_is_named_with_the_remedy(smoke_run: Any, smoke_store: Path) -> None:
    weights = smoke_store / smoke_run.report.merged.weights.path
    away = weights.rename(weights.with_suffix(".away"))
    try:
        state = requantize(
            smoke_run.report.run_id, bits=("int4",), options=_options(smoke_store), return_state=True
        )
        with pytest.raises(SpecError, match=r"merged\.safetensors is missing.*Run the pipeline"):
            state.result()
    finally:
        away.rename(weights)


def _options(store: Path) -> RunOptions:
    return RunOptions(store=str(store), retries=0)
