"""Form fields become settings; what a form shows agrees with the schemas."""

import re

import pytest
from prefect.utilities.callables import parameter_schema
from pydantic import TypeAdapter

from flows.export import export
from flows.form import SETTINGS, Options
from flows.pipeline import pipeline
from flows.requantize import requantize
from flows.seed_validation import seed_validation
from flows.specs import resolve, run_options
from presets import PRESETS
from schemas.errors import SpecError
from schemas.runtime import RunOptions

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
    assert set(VALUES) == set(SETTINGS)
    for field, names in SETTINGS.items():
        for dotted in names:
            value = spec
            for part in dotted.split("."):
                value = getattr(value, part)
            assert value == VALUES[field], dotted


def test_empty_fields_change_nothing() -> None:
    empty = {**dict.fromkeys(VALUES), "bits": "as it is", "edge_bits": "as it is", "embedding_format": "as it is", "clip_candidates": ""}
    for preset in PRESETS:
        assert resolve(preset, [], empty) == resolve(preset, [])


@pytest.mark.parametrize("preset", ["smoke", "demo", "reference"])
def test_bits_count_for_training_and_for_the_blob(preset: str) -> None:
    spec = resolve(preset, [], {"bits": "int4", "edge_bits": "int7", "embedding_format": "int8", "clip_candidates": "1, .9,0.75"})
    for rules in (spec.quantize.rules, spec.train.qat.rules):
        by_pattern = {rule.pattern: rule.format for rule in rules}
        assert by_pattern["*.weight"] == "int4"
        assert by_pattern["tok_emb.weight"] == "int8"
        assert {form for pattern, form in by_pattern.items() if pattern.startswith("blocks.")} == {"int7"}
        assert by_pattern["*"] == "fp32"
    assert spec.quantize.clip_candidates == (1.0, 0.9, 0.75)


@pytest.mark.parametrize("field", ["bits", "edge_bits"])
def test_bits_are_refused_where_the_quantization_chooses_its_steps(field: str) -> None:
    with pytest.raises(SpecError, match=f"{field} = int4: .* ecsq, chooses its steps itself"):
        resolve("record", [], {field: "int4"})


def test_overrides_count_after_the_fields() -> None:
    assert resolve("smoke", ["train.seed=9"], {"seed": 7}).train.seed == 9


def test_bits_without_a_rule_for_them_say_what_to_do() -> None:
    base = ['quantize.rules=[{"pattern": "*", "format": "int8"}]']
    with pytest.raises(SpecError, match=r"bits = int4: quantize\.rules has no rule for \*\.weight"):
        requantize_overrides(base)


def requantize_overrides(base: list[str]) -> None:
    from flows.form import format_overrides

    format_overrides("quantize.rules", resolve("smoke", base).quantize.rules, {"bits": "int4"})


def test_the_form_shows_number_boxes_with_unit_range_and_presets() -> None:
    shown = parameter_schema(pipeline).properties
    assert shown["max_steps"]["type"] == "integer"
    assert shown["max_steps"]["minimum"] == 1
    assert "default" not in shown["max_steps"]  # a null would be sent back, and refused
    assert "smoke 40, demo 480, medium 800, record 20,000" in shown["max_steps"]["description"]
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
    assert set(options) == set(RunOptions.model_fields)
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


def test_empty_options_are_the_defaults_with_the_store_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRWAY_STORE", "/of the/worker")
    filled = TypeAdapter(Options).validate_python({"store": "", "retries": 5, "stage_timeout_seconds": None})
    assert run_options(filled) == RunOptions(store="/of the/worker", retries=5)
    assert run_options(TypeAdapter(Options).validate_python({"store": "mine"})).store == "mine"
    assert run_options(None).store == "/of the/worker"
