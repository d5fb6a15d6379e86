"""Dotted settings: each field of each spec, set, misspelled and given nonsense."""

import dataclasses
import inspect
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas import quantizer_settings, train_settings
from schemas.compute_settings import ComputeSettings
from schemas.errors import SpecError
from schemas.introspect import SettingInfo, describe_fields
from schemas.model_settings import ModelSettings
from schemas.overrides import RENAMED, apply_overrides, check_value, foreign_settings
from schemas.pipeline import PipelineSpec

SPEC = PipelineSpec()
KINDS = {
    "tokenize.corpus": ("sotu", "files", "shards", "huggingface"),
    "tokenize.split": ("first_documents", "hash_fraction"),
    "quantize": tuple(quantizer_settings.QUANTIZER_OF_METHOD),
}


def _every_setting() -> dict[str, tuple[PipelineSpec, SettingInfo]]:
    """Every setting of every variant of every union, with a spec in which it exists."""
    found = {}
    for section, kinds in KINDS.items():
        for kind in kinds:
            tag = "method" if section == "quantize" else "kind"
            spec = apply_overrides(SPEC, [f"{section}.{tag}={kind}"])
            for info in describe_fields(spec):
                found.setdefault(info.name, (spec, info))
    return found


EVERY = _every_setting()


def _value(spec: PipelineSpec, name: str) -> Any:
    return {info.name: info.value for info in describe_fields(spec)}[name]


def test_the_listing_reaches_every_field_of_every_schema() -> None:
    of_variants = {
        "tokenize.corpus.paths",
        "tokenize.corpus.dataset",
        "tokenize.split.num_val_documents",
        "quantize.clip_candidates",
        "quantize.loss_budget_nats",
    }
    assert of_variants <= set(EVERY)
    for cls, prefix in (
        (ModelSettings, "train.model"),
        (quantizer_settings.CalibrationSettings, "quantize.calibration"),
        (quantizer_settings.FitSettings, "quantize.fit"),
        (ComputeSettings, "evaluate.compute"),
    ):
        assert {f"{prefix}.{item.name}" for item in dataclasses.fields(cls)} <= set(EVERY)


@pytest.mark.parametrize("name", EVERY)
def test_every_setting_has_a_line_of_help(name: str) -> None:
    assert EVERY[name][1].help


@pytest.mark.parametrize("name", EVERY)
def test_every_setting_takes_its_own_value_back(name: str) -> None:
    spec, info = EVERY[name]
    text = info.value if isinstance(info.value, str) else json.dumps(info.value)
    assert apply_overrides(spec, [f"{name}={text}"]) == spec


@pytest.mark.parametrize("name", EVERY)
def test_a_misspelled_setting_is_answered_with_the_nearest_name(name: str) -> None:
    spec, _ = EVERY[name]
    head, _, last = name.rpartition(".")
    wrong = f"{head}.{last[:-1]}x" if len(last) > 4 else f"{head}.{last}_"
    with pytest.raises(SpecError) as caught:
        apply_overrides(spec, [f"{wrong}=1"])
    assert wrong in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", EVERY)
def test_nonsense_for_a_setting_is_refused_and_named(name: str) -> None:
    spec, info = EVERY[name]
    nonsense = '{"a": [1]}'
    if (isinstance(info.value, str) and not info.bounds) or name in ("tokenize.tokenizer.model_path",):
        assert _value(apply_overrides(spec, [f"{name}={nonsense}"]), name) == nonsense  # text takes anything
        return
    with pytest.raises(SpecError) as caught:
        apply_overrides(spec, [f"{name}={nonsense}"])
    assert name in str(caught.value)


@pytest.mark.parametrize(
    "name", [name for name, (_, info) in EVERY.items() if "at least" in info.bounds or "above" in info.bounds]
)
def test_a_number_below_its_bound_is_refused_and_named(name: str) -> None:
    spec, info = EVERY[name]
    value = [-1] if isinstance(info.value, list) else -1
    with pytest.raises(SpecError) as caught:
        apply_overrides(spec, [f"{name}={json.dumps(value)}"])
    assert name in str(caught.value)
    assert "-1" in str(caught.value)


@pytest.mark.parametrize(
    "name", [name for name, (_, info) in EVERY.items() if type(info.value) in (int, float)]
)
@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "nan", "1e999", "true", "", "null", "ten"])
def test_what_is_no_finite_number_is_refused_for_a_number(name: str, text: str) -> None:
    spec, _ = EVERY[name]
    if text in ("", "null") and any(name in pair for pair in _pairs()):
        return  # empties this one of a pair
    with pytest.raises(SpecError) as caught:
        apply_overrides(spec, [f"{name}={text}"])
    assert name.rpartition(".")[2] in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("check_size.limit_bytes=-1", "check_size.limit_bytes = -1: must be above 0"),
        ("train.model.num_layers=0", "train.model.num_layers = 0: must be at least 1"),
        ("tokenize.tokenizer.vocab_size=3", "tokenize.tokenizer.vocab_size = 3: must be at least 260"),
        ("tokenize.split.val_fraction=1", "tokenize.split.val_fraction = 1: must be below 1"),
        ("tokenize.shard_tokens=1e9", "tokenize.shard_tokens = 1000000000.0: must be at most 100000000"),
        (
            "check_size.limit_bytes=big",
            'check_size.limit_bytes = "big": must be a valid integer, unable to parse string as an integer. '
            "It is: bytes that the shipped files may have together (bytes, above 0)",
        ),
    ],
)
def test_settings_of_both_kinds_of_class_are_refused_in_the_same_words(given: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        apply_overrides(SPEC, [given])
    assert str(caught.value) == message


@pytest.mark.parametrize("text", ["quantize.method", "=3", "", " =1"])
def test_text_without_a_name_and_a_value_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"dotted\.name=value"):
        apply_overrides(SPEC, [text])


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_gives_a_spec_or_a_spec_error(name: str, value: str) -> None:
    try:
        changed = apply_overrides(SPEC, [f"{name}={value}"])
    except SpecError:
        return
    assert isinstance(changed, PipelineSpec)


@given(
    st.sampled_from(sorted(EVERY)),
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5),
)
def test_any_value_gives_a_spec_that_validates_or_a_spec_error_that_names_the_setting(
    name: str, value: Any
) -> None:
    spec, _ = EVERY[name]
    try:
        changed = apply_overrides(spec, [f"{name}={json.dumps(value)}"])
    except SpecError as error:
        message = str(error)
    else:
        message = name
        assert PipelineSpec.model_validate_json(changed.model_dump_json()) == changed
    assert name.split(".")[0] in message


def test_a_value_is_json_or_else_text() -> None:
    changed = apply_overrides(
        SPEC,
        [
            "quantize.clip_candidates=[1.0, 0.5]",
            "merge.averaging.method=last",
            "publish.title=007",
            "train.seed=7",
        ],
    )
    assert changed.quantize.clip_candidates == (1.0, 0.5)
    assert changed.merge.averaging.method == "last"
    assert changed.publish.title == "007"
    assert changed.train.seed == 7
    assert apply_overrides(SPEC, ['publish.title="quoted"']).publish.title == "quoted"


def test_an_optional_setting_is_emptied_by_nothing_or_null() -> None:
    capped = apply_overrides(SPEC, ["train.schedule.max_seconds=60"])
    assert capped.train.schedule.max_seconds == 60
    for text in ("", "null"):
        assert (
            apply_overrides(capped, [f"train.schedule.max_seconds={text}"]).train.schedule.max_seconds is None
        )


def test_another_kind_takes_the_old_kinds_fields_away_wherever_it_stands() -> None:
    base = apply_overrides(SPEC, ["tokenize.corpus.max_documents=3"])
    for order in (1, -1):
        changed = apply_overrides(
            base, ['tokenize.corpus.paths=["a.txt"]', "tokenize.corpus.kind=files"][::order]
        )
        assert changed.tokenize.corpus.model_dump() == {
            "kind": "files",
            "paths": ("a.txt",),
            "format": "auto",
            "text_column": "text",
        }


def test_the_same_kind_again_keeps_its_fields() -> None:
    base = apply_overrides(SPEC, ["tokenize.corpus.max_documents=3"])
    assert apply_overrides(base, ["tokenize.corpus.kind=sotu"]) == base


def test_a_setting_of_another_kind_says_which_kind_has_it() -> None:
    with pytest.raises(SpecError, match=r"belongs to tokenize\.corpus\.kind = files"):
        apply_overrides(SPEC, ['tokenize.corpus.paths=["a.txt"]'])


def test_another_quantizer_keeps_what_both_inherit_and_has_its_own_defaults_wherever_it_stands() -> None:
    rules = 'quantize.rules=[{"pattern": "*", "format": "fp32"}]'
    base = apply_overrides(SPEC, [rules, "quantize.zstd_level=3", "quantize.clip_candidates=[0.5]"])
    for order in (1, -1):
        changed = apply_overrides(base, ["quantize.loss_budget_nats=0.2", "quantize.method=ecsq"][::order])
        assert changed.quantize == quantizer_settings.Ecsq(
            rules=base.quantize.rules, zstd_level=3, loss_budget_nats=0.2
        )
    calibrated = apply_overrides(changed, ["quantize.calibration.batch_sequences=2", "quantize.method=ecsq"])
    assert apply_overrides(calibrated, ["quantize.method=gptq"]).quantize == quantizer_settings.Gptq(
        rules=base.quantize.rules,
        zstd_level=3,
        calibration=quantizer_settings.CalibrationSettings(batch_sequences=2),
    )
    assert apply_overrides(calibrated, ["quantize.method=gptq_lite"]).quantize == quantizer_settings.GptqLite(
        rules=base.quantize.rules, zstd_level=3
    )


def test_settings_that_only_have_the_same_name_are_not_kept() -> None:
    base = apply_overrides(SPEC, ["tokenize.corpus.kind=shards", "tokenize.corpus.folder=data"])
    assert apply_overrides(base, ["tokenize.corpus.kind=huggingface"]).tokenize.corpus.folder == ""


@pytest.mark.parametrize(
    ("setting", "owners"),
    [
        ("quantize.loss_budget_nats=0.1", "ecsq"),
        ("quantize.fit.limit_bytes=1000", "ecsq"),
        ("quantize.calibration.seed=1", "gptq or ecsq"),
    ],
)
def test_a_setting_of_another_quantizer_is_refused_and_says_whose_it_is(setting: str, owners: str) -> None:
    name = setting.partition("=")[0]
    with pytest.raises(SpecError) as caught:
        apply_overrides(SPEC, [setting])
    assert str(caught.value) == (
        f"{name}: quantize.method = gptq_lite has no such setting. It belongs to quantize.method = {owners}: "
        "leave it out, or set that"
    )
    assert list(foreign_settings(SPEC, ["train.seed=1", setting])) == [setting]
    assert foreign_settings(SPEC, [setting, "quantize.method=ecsq"]) == {}


def test_a_name_of_an_earlier_version_is_answered_with_the_present_one() -> None:
    assert set(RENAMED.values()) <= set(EVERY)
    for old, new in RENAMED.items():
        with pytest.raises(SpecError, match=f"^{re.escape(old)}: is now called {re.escape(new)}$"):
            apply_overrides(SPEC, [f"{old}=1"])
    with pytest.raises(SpecError, match=r"is now called quantize\.floors\.0\.format$"):
        apply_overrides(SPEC, ["quantize.ecsq.floors.0.format=int4"])


def test_a_quantizer_without_a_method_is_gptq_lite_and_an_unknown_one_is_named() -> None:
    assert PipelineSpec.model_validate(
        {"quantize": {"zstd_level": 3}}
    ).quantize == quantizer_settings.GptqLite(zstd_level=3)
    with pytest.raises(SpecError, match=r"quantize\.method = gtpq: must be one of .*Did you mean gptq\?"):
        apply_overrides(SPEC, ["quantize.method=gtpq"])
    with pytest.raises(SpecError, match=r"^quantize\.seed: there is no such setting"):
        apply_overrides(SPEC, ['quantize={"method": "gptq", "seed": 1}'])


def test_the_choice_of_a_quantizer_is_described_with_what_each_means() -> None:
    told = EVERY["quantize.method"][1]
    assert told.bounds == " | ".join(quantizer_settings.QUANTIZER_OF_METHOD)
    assert "gptq: error feedback on calibration text; ecsq: " in told.help


def _pairs() -> list[tuple[str, str]]:
    pairs = [
        (name, name.removesuffix("_fraction") + "_steps") for name in EVERY if name.endswith("_fraction")
    ]
    return [pair for pair in pairs if pair[1] in EVERY]


def test_every_exclusive_pair_of_the_settings_is_known_by_its_endings() -> None:
    declared = re.findall(r'_exactly_one\(self, "(\w+)", "(\w+)"\)', inspect.getsource(train_settings))
    assert sorted(declared) == sorted((a.rpartition(".")[2], b.rpartition(".")[2]) for a, b in _pairs())


@pytest.mark.parametrize(("fraction", "steps"), _pairs())
def test_giving_one_of_an_exclusive_pair_empties_the_other(fraction: str, steps: str) -> None:
    in_steps = apply_overrides(SPEC, [f"{steps}=10"])
    assert (_value(in_steps, fraction), _value(in_steps, steps)) == (None, 10)
    in_fractions = apply_overrides(in_steps, [f"{fraction}=0.5"])
    assert (_value(in_fractions, fraction), _value(in_fractions, steps)) == (0.5, None)
    with pytest.raises(SpecError, match="exactly one"):
        apply_overrides(SPEC, [f"{steps}=10", f"{fraction}=0.5"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["merge.scoring.attention_window=8"],
            "merge.scoring.attention_window = 8: it takes the place of sliding windows; set "
            "merge.scoring.stride=0, which is 64",
        ),
        (
            ["train.model.unet_skips=false", "train.model.skip_gates=true"],
            "train.model.skip_gates = True: there are no skips; set train.model.unet_skips=true",
        ),
        (
            ["merge.compute.num_nodes=2"],
            "merge.compute.num_nodes = 2: only training uses several machines; leave it at 1 here",
        ),
        (
            ["evaluate.test_time_training.on=true", "evaluate.test_time_training.chunk_tokens=4000"],
            "evaluate.test_time_training.chunk_tokens = 4000: must be at most "
            "evaluate.scoring.sequence_length = 2048",
        ),
    ],
)
def test_a_check_of_a_section_names_settings_as_they_are_set(given: list[str], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        apply_overrides(SPEC, given)
    assert str(caught.value) == message


def test_list_items_go_by_index() -> None:
    changed = apply_overrides(SPEC, ["quantize.rules.0.format=int8", "quantize.clip_candidates.1=0.5"])
    assert changed.quantize.rules[0].format == "int8"
    assert changed.quantize.rules[1:] == SPEC.quantize.rules[1:]
    assert changed.quantize.clip_candidates[1] == 0.5
    for name in ("quantize.rules.5.format", "quantize.rules.-1.format", "quantize.rules.first.format"):
        with pytest.raises(SpecError, match="0 to 4"):
            apply_overrides(SPEC, [f"{name}=int8"])


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ("train.data.context_lengths=32,16", "train.data.context_lengths=[32,16]"),
        ("train.data.context_lengths=16", "train.data.context_lengths=[16]"),
        ("train.data.context_ends=0.5, 1", "train.data.context_ends=[0.5,1]"),
        ("train.optimizer.frozen=a,b", """'train.optimizer.frozen=["a","b"]'"""),
        ("train.optimizer.frozen=7", """'train.optimizer.frozen=["7"]'"""),
        ("train.optimizer.frozen=[a, b]", """'train.optimizer.frozen=["a","b"]'"""),
        ("quantize.rules=int8", "quantize.rules=[…]"),
    ],
)
def test_a_list_without_brackets_is_answered_with_the_override_that_has_its_items(
    given: str, remedy: str
) -> None:
    with pytest.raises(SpecError) as caught:
        apply_overrides(SPEC, [given])
    assert str(caught.value).endswith(f": is a list; write it as JSON: {remedy}")
    if "…" not in remedy:
        check_value(SPEC, *remedy.strip("'").split("="))


def test_settings_are_checked_together_after_all_are_applied() -> None:
    both = ["tokenize.tokenizer.vocab_size=512", "train.model.vocab_size=512"]
    assert apply_overrides(SPEC, both).train.model.vocab_size == 512
    with pytest.raises(
        SpecError, match=r"tokenize\.tokenizer\.vocab_size = 512 and train\.model\.vocab_size = 1024"
    ):
        apply_overrides(SPEC, both[:1])


def test_the_given_spec_stays_as_it_was() -> None:
    before = SPEC.model_dump()
    apply_overrides(SPEC, ["train.seed=9", "quantize.rules.0.format=int8"])
    assert SPEC.model_dump() == before


def test_specs_refuse_unknown_fields_without_overrides_too() -> None:
    with pytest.raises(ValidationError):
        PipelineSpec.model_validate({"quantize": {"methd": "x"}})


def test_a_setting_is_described_with_unit_help_and_bounds() -> None:
    infos = {info.name: info for info in describe_fields(SPEC)}
    assert infos["train.schedule.max_steps"] == SettingInfo(
        "train.schedule.max_steps", 20_000, "steps", "optimizer steps at most", "at least 1"
    )
    assert infos["merge.averaging.method"].bounds == "swa | ema | ema_of_steps | last"
    assert infos["tokenize.corpus.kind"].bounds == "sotu | files | shards | huggingface"
    assert infos["check_size.limit_bytes"].unit == "bytes"
