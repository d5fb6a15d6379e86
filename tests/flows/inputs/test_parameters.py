"""Parameters of flows, checked without a server: names, values, what is allowed, and the nearest choice."""

from pathlib import Path
from typing import Any

import pytest

from flows.cli.options import _option_of_parameter
from flows.inputs.parameters import check_parameters, nearest
from flows.inputs.specs import plan_run
from flows.pipeline import pipeline
from flows.requantize import requantize
from flows.seed_validation import _wanted_ledger, seed_validation
from schemas.errors import SpecError
from schemas.runtime import RunOptions
from schemas.seeds import SeedEntry
from stages.seeds.ledger import open_locked, write_ledger
from stages.store.store import Store


@pytest.mark.parametrize(
    ("flow", "given", "named"),
    [
        (requantize, {"bits": ["int9"]}, "--bits int9: must be one of int2, int3, "),
        (requantize, {"bits": ["int4", "imt8"]}, "--bits imt8: .* Did you mean int8?"),
        (requantize, {"methods": ["ecqs"]}, r"--method ecqs: must be one of .*\. Did you mean ecsq\?"),
        (requantize, {"limit_bytes": 0}, "--limit-bytes 0: must be at least 1"),
        (requantize, {"clip_grids": ["1.0;0.9"]}, "--clip-grid 1.0;0.9: has another form. Clip ratios above"),
        (requantize, {"overrides": ["nonsense"]}, r"--set nonsense: .* as dotted\.name=value"),
        (seed_validation, {"mark_nats": -1.0}, "--mark -1.0: must be above 0"),
        (seed_validation, {"preset": "somke"}, "--preset somke: .* Did you mean smoke?"),
        (pipeline, {"preset": "smoke", "again": ["trian"]}, "--again trian: .* Did you mean train?"),
    ],
)
def test_a_value_that_a_parameter_never_has_is_named_with_what_is_allowed(
    flow: Any, given: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=named):
        _check(flow, given, tmp_path)


@pytest.mark.parametrize(
    ("flow", "given", "options", "named"),
    [
        (pipeline, {"preset": "smoke", "overrides": ["quantize.methd=x"]}, {}, r"quantize\.method\?"),
        (
            pipeline,
            {"preset": "smoke"},
            {"stop_behind": "nope:0.1"},
            "^--stop-behind nope:0.1: RUN = nope: .* no finished run",
        ),
        (pipeline, {"preset": "smoke"}, {"launcher": "slurm"}, "^--launcher slurm: .*--nodes"),
        (pipeline, {"preset": "record"}, {}, "^tokenize.corpus.folder = .* is not a folder"),
        (seed_validation, {"preset": "record"}, {}, "^tokenize.corpus.folder = .* is not a folder"),
        (seed_validation, {"preset": "smoke", "against": "x"}, {}, "^--against x: no such ledger"),
        (requantize, {"limit_bytes": 9, "bits": ["int4"]}, {}, "^--limit-bytes 9: is met by the method ecsq"),
    ],
)
def test_what_a_flow_itself_refuses_is_refused_by_its_own_check(
    flow: Any, given: dict[str, Any], options: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=named):
        _check(flow, given, tmp_path, **options)


def test_the_statistics_of_a_ledger_need_no_text_where_no_seed_is_to_be_trained(tmp_path: Path) -> None:
    """The preset's folder of shards is not there; with a seed to train that is refused (above)."""
    _check(seed_validation, {"preset": "record", "new_seeds_per_run": 0}, tmp_path)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"max_seeds": 11}, "^--max-seeds 11: ledger .* was declared with 10"),
        ({"recheck_seed": 5}, "^--recheck-seed 5: not a completed seed .* completed: 1"),
        (
            {"ledger": "other", "recheck_seed": 1},
            "^--recheck-seed 1: not a completed seed .* completed: none",
        ),
    ],
)
def test_what_would_spoil_a_ledger_is_refused_by_the_ledger_in_the_store(
    asked: dict[str, Any], named: str, tmp_path: Path
) -> None:
    plan = plan_run("smoke", ())
    entry = SeedEntry(
        seed=1, status="completed", run_id="a", run_name="b", created_at="c", code_sha256="d", machine=""
    )
    with open_locked(tmp_path, _wanted_ledger(plan, "smoke", 1, 10)) as book:
        write_ledger(tmp_path, book.with_entry(entry))
    with pytest.raises(SpecError, match=named):
        _check(seed_validation, {"preset": "smoke", **asked}, tmp_path)
    _check(seed_validation, {"preset": "smoke", "recheck_seed": 1}, tmp_path)


def test_what_a_flow_takes_passes(tmp_path: Path) -> None:
    _check(pipeline, {"preset": "smoke", "overrides": ["train.seed=7"], "again": ["train"]}, tmp_path)
    _check(seed_validation, {"preset": "smoke", "mark_nats": 2.9}, tmp_path)


@pytest.mark.parametrize(("text", "choice"), [("gptq_lit", "gptq_lite"), ("gptp", "gptq"), ("xyz", None)])
def test_the_nearest_choice_is_said_where_there_is_one(text: str, choice: str | None) -> None:
    assert nearest(text, ["round_to_nearest", "gptq_lite", "gptq", "ecsq"]) == choice
    assert nearest("int9", ["int2", "int3"]) is None


def _check(flow: Any, given: dict[str, Any], store: Path, **options: Any) -> None:
    asked = RunOptions(store=str(store), **options)
    check_parameters(flow, (), given, asked, Store(store), _option_of_parameter)
