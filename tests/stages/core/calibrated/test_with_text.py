"""A whole model by a method that reads text: limits, progress, what is told."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from schemas.model_settings import ModelSettings
from schemas.quantizer_settings import CalibrationSettings, Ecsq, FitSettings, GptqLite
from schemas.tensor_formats import FormatRule
from schemas.tokenize_corpus import TokenizedCorpus
from stages.core.blob.packing import pack
from stages.core.calibrated.fit import LimitTooSmallError
from stages.core.calibrated.with_text import CalibratedModel, quantize_with_text
from stages.core.loader import TokenStream
from stages.core.program import knowing_its_code

CALIBRATION = CalibrationSettings(num_sequences=16, sequence_length=32, batch_sequences=8)
CODED = Ecsq(rules=(FormatRule("*.weight", "int8"), FormatRule("*", "fp32")), calibration=CALIBRATION)
CODE_BYTES = 50_000

State = dict[str, torch.Tensor]


@pytest.fixture
def stream(tiny_tokens: TokenizedCorpus) -> TokenStream:
    return TokenStream([Path(shard.path) for shard in tiny_tokens.train_shards])


def blob_bytes(made: CalibratedModel, model: ModelSettings) -> int:
    return len(pack(made.model, {"model": asdict(model)}, 22))


def test_a_fitted_package_is_within_a_thousandth_below_the_limit(
    tiny_state: State, tiny_model: ModelSettings, stream: TokenStream
) -> None:
    metadata, said, steps = {"model": asdict(tiny_model)}, list[str](), list[tuple[float, float]]()
    free = quantize_with_text(tiny_state, tiny_model, stream, CODED, metadata)
    limit = CODE_BYTES + blob_bytes(free, tiny_model) * 9 // 10
    settings = replace(
        CODED,
        fit=FitSettings(limit_bytes=limit, code_bytes=CODE_BYTES),
        measured_shares=True,
    )
    made = quantize_with_text(
        tiny_state, tiny_model, stream, settings, metadata, said.append, lambda *at: steps.append(at)
    )
    size = blob_bytes(made, tiny_model) + CODE_BYTES
    assert 0.999 * limit <= size <= limit
    assert free.tries == ()
    assert dict(made.tries)[made.multiplier] == size
    assert made.multiplier is not None
    assert free.multiplier is not None
    assert made.multiplier > free.multiplier
    assert [name for name, _ in made.divergences] == [
        tensor.name for tensor in made.model.tensors if tensor.format == "coded"
    ]
    assert sum("bytes" in line for line in said) == len(made.tries)
    assert steps == sorted(steps)
    assert steps[-1][0] == steps[-1][1]


def test_a_limit_that_cannot_be_met_says_the_size_at_the_coarsest_steps(
    tiny_state: State, tiny_model: ModelSettings, stream: TokenStream
) -> None:
    metadata = {"model": asdict(tiny_model)}
    settings = replace(CODED, fit=FitSettings(limit_bytes=1_000, code_bytes=500))
    coarsest = quantize_with_text(
        tiny_state, tiny_model, stream, replace(CODED, loss_budget_nats=1.0), metadata
    )
    smallest = blob_bytes(coarsest, tiny_model) + 500
    expected = rf"fit\.limit_bytes = 1000: .* the smallest possible is {smallest:,} bytes, script included"
    with pytest.raises(LimitTooSmallError, match=expected):
        quantize_with_text(tiny_state, tiny_model, stream, settings, metadata)


def test_the_program_counts_its_own_bytes_unless_it_is_told_others(tmp_path: Path) -> None:
    script = tmp_path / "train_gpt.py"
    script.write_bytes(bytes(1_234))
    fit = FitSettings(limit_bytes=9_999)
    for unfitted in (CODED, GptqLite()):
        assert knowing_its_code(unfitted, script) == unfitted
    assert knowing_its_code(replace(CODED, fit=fit), script).fit == replace(fit, code_bytes=1_234)
    told = replace(CODED, fit=replace(fit, code_bytes=7))
    assert knowing_its_code(told, script) == told
