"""Form fields become settings; what a form shows agrees with the schemas."""

import inspect
import re
from typing import get_args

import pytest
from prefect.exceptions import ParameterTypeError, SignatureMismatchError
from prefect.utilities.callables import parameter_schema
from pydantic import TypeAdapter

from flows.export import export
from flows.inputs.form import AS_IT_IS, SETTINGS, Bits, NumberField, Options
from flows.inputs.specs import resolve, run_options
from flows.pipeline import pipeline
from flows.requantize import requantize
from flows.seed_validation import seed_validation
from presets import PRESETS
from schemas.errors import SpecError
from schemas.runtime import RunOptions
from schemas.tensor_formats import TensorFormat

VALUES = {
    "seed": 7,
    "max_steps": 11,
    "max_seconds": 30.5,
    "vocab_size": 384,
    "num_layers": 4,
    "model_dim": 64,
    "mlp_hidden": 96,
    "swa_window": 0.3,
    "limit_bytes": 200_000,
}


def test_every_field_sets_its_settings() -> None:
    spec = resolve("smoke", [], VALUES)
    numbers = {name: field for name, field in SETTINGS.items() if isinstance(field, NumberField)}
    assert set(VALUES) == set(numbers)
    for field, made in numbers.items():
        for dotted in made.settings:
            value = spec
            for part in dotted.split("."):
                value = getattr(value, part)
            assert value == VALUES[field], dotted


def test_empty_fields_change_nothing() -> None:
    empty = {
        **dict.fromkeys(VALUES),
        "bits": "as it is",
        "edge_bits": "as it is",
        "embedding_format": "as it is",
        "clip_candidates": "",
    }
    for preset in PRESETS:
        assert resolve(preset, [], empty) == resolve(preset, [])


@pytest.mark.parametrize("preset", ["smoke", "demo", "reference"])
def test_bits_count_for_training_and_for_the_blob(preset: str) -> None:
    spec = resolve(preset, [], {"bits": "int4", "edge_bits": "int7", "embedding_format": "int8"})
    for rules in (spec.quantize.rules, spec.train.qat.rules):
        by_pattern = {rule.pattern: rule.format for rule in rules}
        assert by_pattern["*.weight"] == "int4"
        assert by_pattern["tok_emb.weight"] == "int8"
        assert {form for pattern, form in by_pattern.items() if pattern.startswith("blocks.")} == {"int7"}
        assert by_pattern["*"] == "fp32"


def test_clip_ratios_are_read_as_a_person_writes_them() -> None:
    assert resolve("demo", [], {"clip_candidates": "1, .9,0.75"}).quantize.clip_candidates == (1.0, 0.9, 0.75)


ECSQ = ["quantize.method=ecsq", "train.qat.start_lr_scale=0"]
LACKS = "has no such setting. It belongs to quantize.method"
GPTQ_LITES = f"{LACKS} = gptq_lite"
GRIDS = "quantize.clip_candidates=[1.0, 0.9]"


@pytest.mark.parametrize(
    ("preset", "overrides", "fields", "named"),
    [
        (
            "record",
            [],
            {"bits": "int4"},
            r"bits = int4: method ecsq chooses its steps itself\. .*--method gptq_lite.*loss_bud",
        ),
        ("demo", ECSQ, {"bits": "int4"}, "bits = int4: method ecsq chooses its steps itself"),
        ("demo", ECSQ, {"edge_bits": "int7"}, "edge_bits = int7: method ecsq chooses"),
        ("demo", ECSQ, {"embedding_format": "int4"}, "embedding_format = int4: method ecsq chooses"),
        (
            "demo",
            [*ECSQ, "quantize.rules.3.format=int4"],
            {},
            r"quantize\.rules\.3\.format = int4: method ecsq chooses",
        ),
        (
            "demo",
            ["quantize.method=round_to_nearest"],
            {"clip_candidates": "1, 0.9"},
            rf"clip_candidates = 1, 0.9: .* = round_to_nearest {GPTQ_LITES}",
        ),
        (
            "demo",
            ["quantize.method=round_to_nearest", GRIDS],
            {},
            rf"quantize\.clip_candidates: .* = round_to_nearest {GPTQ_LITES}",
        ),
        (
            "demo",
            [*ECSQ, "quantize.clip_candidates.1=0.9"],
            {},
            f"= ecsq {GPTQ_LITES}",
        ),
        (
            "demo",
            ["quantize.calibration.num_sequences=64"],
            {},
            f"= gptq_lite {LACKS} = gptq or ecsq",
        ),
        (
            "demo",
            ["quantize.loss_budget_nats=0.01"],
            {},
            f"{LACKS} = ecsq",
        ),
        (
            "record",
            ["quantize.loss_budget_nats=0.01"],
            {},
            "fit.limit_bytes = 16000000 decides the steps; .* quantize.fit.limit_bytes=",
        ),
        ("demo", [*ECSQ, "quantize.fit.tolerance_fraction=0.1"], {}, "no limit is fitted"),
        ("smoke", ["merge.averaging.ema_decay=0.5"], {}, "merge.averaging.method = swa has no decay"),
        (
            "demo",
            ["merge.averaging.method=last", "merge.averaging.every_nth=2"],
            {},
            "last averages no snapshots",
        ),
        ("demo", ["train.qat.start_lr_scale=0", "train.qat.rules.3.format=int4"], {}, "late QAT is off"),
    ],
)
def test_what_the_chosen_methods_ignore_is_refused(
    preset: str, overrides: list[str], fields: dict[str, str], named: str
) -> None:
    with pytest.raises(SpecError, match=named):
        resolve(preset, overrides, fields)


@pytest.mark.parametrize(
    ("preset", "overrides", "fields"),
    [
        (
            "record",
            ["quantize.method=gptq_lite"],
            {"bits": "int4", "clip_candidates": "1, 0.9"},
        ),
        (
            "demo",
            ["quantize.method=ecsq", "train.qat.grid=round_to_nearest"],
            {"bits": "int4"},
        ),  # for training under QAT
        ("demo", ECSQ, {"embedding_format": "int8"}),
        ("demo", [*ECSQ, "quantize.loss_budget_nats=0.01", "quantize.calibration.num_sequences=64"], {}),
        ("record", ["quantize.fit.tolerance_fraction=0.1"], {}),
        ("record", ["quantize.measured_shares=true", "quantize.loss_budget_nats=0.01"], {}),
        ("record", ["quantize.fit.limit_bytes=", "quantize.loss_budget_nats=0.01"], {}),
        ("demo", ["merge.averaging.method=ema", "merge.averaging.ema_decay=0.5"], {}),
        ("demo", ["merge.averaging.method=last"], {"swa_window": 0.3}),  # which snapshots are written
        ("demo", [*ECSQ, "quantize.fit.code_bytes=null"], {}),
    ],
)
def test_what_counts_after_all_overrides_is_taken(
    preset: str, overrides: list[str], fields: dict[str, str]
) -> None:
    assert resolve(preset, overrides, fields) != resolve(preset, [])


def test_overrides_count_after_the_fields() -> None:
    assert resolve("smoke", ["train.seed=9"], {"seed": 7}).train.seed == 9


def test_bits_without_a_rule_for_them_say_what_to_do() -> None:
    base = ['quantize.rules=[{"pattern": "*", "format": "int8"}]']
    with pytest.raises(SpecError, match=r"bits = int4: quantize\.rules has no rule for \*\.weight"):
        requantize_overrides(base)


def requantize_overrides(base: list[str]) -> None:
    from flows.inputs.form import format_overrides

    format_overrides("quantize.rules", resolve("smoke", base).quantize.rules, {"bits": "int4"})


def test_the_pipelines_form_is_made_of_the_table() -> None:
    asked = ["preset", *SETTINGS, "overrides", "again", "options"]
    assert list(parameter_schema(pipeline).properties) == asked
    # What is called has the fields as well, each with what stands for empty.
    called = inspect.signature(pipeline.fn).parameters
    assert list(called) == asked
    assert {name: called[name].default for name in SETTINGS} == {
        name: field.empty for name, field in SETTINGS.items()
    }


def test_filled_fields_reach_the_pipeline_as_their_own_types() -> None:
    filled = {"preset": "smoke", "max_steps": "12", "max_seconds": 30, "bits": "int4", "limit_bytes": None}
    checked = pipeline.validate_parameters(filled)
    assert {name: checked[name] for name in filled} == {**filled, "max_steps": 12, "max_seconds": 30.0}
    for wrong in ({"bits": "int9"}, {"max_step": 12}, {"seed": 1.5}, {"clip_candidates": "2"}):
        with pytest.raises((ParameterTypeError, SignatureMismatchError)):
            pipeline.validate_parameters({"preset": "smoke", **wrong})


def test_the_formats_of_the_form_are_those_of_the_schemas() -> None:
    shown = parameter_schema(pipeline).properties
    coded = [name for name in get_args(TensorFormat) if name.startswith("int")]
    assert shown["bits"]["enum"] == [AS_IT_IS, *coded]
    assert list(get_args(Bits)) == coded
    for name in ("edge_bits", "embedding_format"):
        assert set(shown[name]["enum"]) == {AS_IT_IS, *get_args(TensorFormat)} - {"int2", "int3"}


def test_the_form_shows_number_boxes_with_unit_range_and_presets() -> None:
    shown = parameter_schema(pipeline).properties
    assert shown["max_steps"]["type"] == "integer"
    assert shown["max_steps"]["minimum"] == 1
    assert "default" not in shown["max_steps"]  # a null would be sent back, and refused
    steps = ", ".join(f"{name} {make().train.schedule.max_steps:,}" for name, make in PRESETS.items())
    assert steps in shown["max_steps"]["description"]
    assert (shown["max_seconds"]["type"], shown["max_seconds"]["exclusiveMinimum"]) == ("number", 0)
    assert shown["preset"]["enum"] == list(PRESETS)


@pytest.mark.parametrize("flow", [pipeline, requantize, seed_validation])
def test_every_field_is_optional_described_and_flat(flow: object) -> None:
    schema = parameter_schema(flow)  # type: ignore[arg-type]
    assert schema.required == []
    for name, field in schema.properties.items():
        assert len(field["description"]) > 20, name
        assert "type" in field, name
    options = schema.properties["options"]["properties"]
    made_by_the_flow = {"held_out", "parts"}
    assert set(options) == set(RunOptions.model_fields) - made_by_the_flow
    for name, field in options.items():
        assert field["type"] in ("string", "integer", "number"), name
        assert "Empty: " in field["description"], name
        assert "default" not in field, name


def test_an_export_asks_for_the_author_and_nothing_else() -> None:
    schema = parameter_schema(export)
    assert schema.required == ["author", "github_id", "name"]
    for name, field in schema.properties.items():
        assert len(field["description"]) > 20, name
        assert "type" in field, name
    assert re.fullmatch(schema.properties["github_id"]["pattern"], "octo-cat")
    assert not re.fullmatch(schema.properties["github_id"]["pattern"], "octo cat")


def test_empty_options_are_the_defaults_with_the_store_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAIRWAY_STORE", "/of the/worker")
    filled = TypeAdapter(Options).validate_python({"store": "", "retries": 5, "stage_timeout_seconds": None})
    assert run_options(filled) == RunOptions(store="/of the/worker", retries=5)
    assert run_options(TypeAdapter(Options).validate_python({"store": "mine"})).store == "mine"
    assert run_options(None).store == "/of the/worker"
