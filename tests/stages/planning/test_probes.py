"""The probes measure real steps, windows, quantizers and predictions."""

from pathlib import Path

import pytest

from schemas.model_settings import ModelSettings
from schemas.quantizer_settings import CalibrationSettings, Ecsq, FitSettings, GptqLite
from schemas.scoring_settings import ScoringSettings
from schemas.tensor_formats import FormatRule
from schemas.tokenize_corpus import TokenizedCorpus
from schemas.train_settings import TrainSettings
from stages.planning.job import ModelProbeJob, StepProbeJob
from stages.planning.model_probe import measure_model
from stages.planning.step_probe import FEW_STEPS, measure_steps

RULES = (FormatRule("*.weight", "int8"), FormatRule("*", "fp32"))


@pytest.mark.parametrize(("stride", "attention_window"), [(32, 0), (0, 64)])
def test_steps_and_windows_have_seconds(
    smoke_training: TrainSettings,
    tiny_tokens: TokenizedCorpus,
    monkeypatch: pytest.MonkeyPatch,
    stride: int,
    attention_window: int,
) -> None:
    monkeypatch.setattr("stages.planning.step_probe._ENOUGH_SECONDS", 0.0)
    job = StepProbeJob(
        train=smoke_training,
        shards=tuple(Path(ref.path) for ref in tiny_tokens.train_shards),
        scoring=ScoringSettings(64, stride, batch_tokens=512, attention_window=attention_window),
    )
    found = measure_steps(job)
    assert found.steps == FEW_STEPS
    assert 0 < found.step_seconds < found.inside_seconds
    assert 0 < found.window_seconds < found.inside_seconds
    assert found.sliding_window_seconds is not None
    assert found.peak_bytes > 50 * 2**20  # a process with PyTorch


def test_a_fit_to_a_limit_takes_longer_than_its_quantizer_alone(tiny_model: ModelSettings) -> None:
    text = CalibrationSettings(num_sequences=2, sequence_length=16, batch_sequences=2)
    plain, coded, fitted = (
        measure_model(ModelProbeJob(model=tiny_model, quantizer=quantizer, sequence_length=64))
        for quantizer in (
            GptqLite(rules=RULES),
            Ecsq(rules=RULES, calibration=text),
            Ecsq(rules=RULES, calibration=text, fit=FitSettings(limit_bytes=10_000, code_bytes=0)),
        )
    )
    assert plain.quantize_seconds > 0
    assert coded.quantize_seconds < fitted.quantize_seconds
    assert plain.token_seconds > 0
