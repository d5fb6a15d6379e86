"""Names of quantizations: what they stand for, and what is no name."""

import pytest

from presets.quantizers import SCHEMES, choose_schemes, scheme_settings
from schemas.errors import SpecError
from schemas.quantizer_settings import CalibrationSettings, Ecsq, FitSettings, Gptq, GptqLite
from schemas.tensor_formats import format_for

BASE = GptqLite(zstd_level=3, clip_candidates=(1.0, 0.9))


def test_every_scheme_has_settings_of_its_own_and_keeps_the_rest() -> None:
    made = [scheme_settings(name, BASE, num_layers=6) for name in SCHEMES]
    assert len(set(made)) == len(SCHEMES) == len(set(SCHEMES))
    assert {settings.method for settings in made} == {
        "reference",
        "round_to_nearest",
        "gptq_lite",
        "gptq",
        "ecsq",
    }
    assert {settings.zstd_level for settings in made} == {3}
    clips = {settings.clip_candidates for settings in made if isinstance(settings, GptqLite)}
    assert clips == {(1.0, 0.9)}


def test_a_run_that_reads_text_keeps_its_calibration_in_the_schemes_that_do() -> None:
    base = Gptq(calibration=CalibrationSettings(batch_sequences=2))
    made = {name: scheme_settings(name, base, num_layers=6) for name in ("gptq:int5", "ecsq:0.001")}
    assert {settings.calibration for settings in made.values()} == {base.calibration}  # type: ignore[union-attr]


def test_the_reference_keeps_its_edges_and_its_embedding() -> None:
    rules = scheme_settings("reference", BASE, num_layers=6).rules
    wanted = {
        "tok_emb.weight": "fp16",
        "blocks.0.attn.q.weight": "int8",
        "blocks.5.mlp.up.weight": "int8",
        "blocks.1.mlp.up.weight": "int6",
        "smear.gate": "fp32",
    }
    assert {name: format_for(name, rules) for name in wanted} == wanted


def test_a_setting_of_ones_own_is_taken() -> None:
    assert format_for("blocks.0.attn.q.weight", scheme_settings("gptq:int3", BASE, 6).rules) == "int3"
    made = scheme_settings("ecsq:0.002", Ecsq(measured_shares=True), 6)
    assert isinstance(made, Ecsq)
    assert (made.loss_budget_nats, made.measured_shares) == (0.002, True)


def test_a_run_that_was_fitted_to_a_limit_is_not_fitted_here() -> None:
    fitted = Ecsq(fit=FitSettings(limit_bytes=5))
    assert {scheme_settings(name, fitted, 6).limit_bytes for name in SCHEMES} == {None}


def test_a_method_stands_for_its_schemes_and_nothing_for_all() -> None:
    assert choose_schemes(()) == SCHEMES
    assert choose_schemes(("gptq", "ecsq:0.002", " gptq:int6 ")) == ("gptq:int6", "gptq:int5", "ecsq:0.002")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gtpq:int5", "did you mean gptq:int5"),
        ("gptq:int9", "with int2 to int8"),
        ("ecsq:0", "above 0"),
        ("ecsq:inf", "above 0"),
        ("ecsq:much", "nats a token"),
        ("reference:int6", "scheme = reference:int6"),
        ("", "There are reference"),
    ],
)
def test_what_is_no_scheme_is_refused(name: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        choose_schemes((name,))
