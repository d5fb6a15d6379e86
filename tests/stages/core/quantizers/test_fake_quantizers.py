"""What training under late QAT sees is what the quantizer would store, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.pipeline import on_grid_of
from schemas.qat_settings import QatSettings
from schemas.quantizer_settings import QUANTIZER_OF_METHOD, Gptq, GptqLite, QuantizerSettings
from schemas.tensor_formats import FormatRule
from stages.core.calibrated.calibration import MatrixStatistics
from stages.core.calibrated.gptq import gptq
from stages.core.calibrated.table import QUANTIZERS, MatrixQuantizer
from stages.core.calibrated.whole_model import quantize_state
from stages.core.quantizers.fake_quantizers import fake_quantizer
from stages.core.quantizers.grid import QuantizedRows, dequantize_rows
from stages.core.quantizers.reference import REFERENCE_QUANTILES, upper_quantiles

MATRIX_KINDS = [kind for kind, quantizer in QUANTIZERS.items() if isinstance(quantizer, MatrixQuantizer)]


def qat(settings: QuantizerSettings) -> QatSettings:
    return on_grid_of(settings, QatSettings())


def on_matrix(weight: torch.Tensor, bits: int, settings: QuantizerSettings) -> QuantizedRows:
    quantizer = QUANTIZERS[type(settings)]
    assert isinstance(quantizer, MatrixQuantizer)
    return quantizer.function(weight, bits, settings)


def matrices(count: int, rows: int, columns: int, seed: int) -> torch.Tensor:
    """(N, R, C): rows of many sizes, heavy tails, a zero row."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(count, rows, columns, generator=generator) ** 3 * torch.logspace(
        -6, 1, rows
    ).unsqueeze(1)
    weights[:, rows // 2] = 0
    return weights


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("kind", MATRIX_KINDS)
@settings(max_examples=12, deadline=None)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 90), st.integers(0, 2**31))
def test_it_is_what_the_quantizer_stores_bit_for_bit(
    kind: type[QuantizerSettings], bits: int, count: int, rows: int, columns: int, seed: int
) -> None:
    weights = matrices(count, rows, columns, seed).requires_grad_()
    name, fake = fake_quantizer(qat(kind()))
    seen = fake(weights, bits)
    assert name == kind.qat_grid
    assert not seen.requires_grad
    rules = (FormatRule("*", f"int{bits}"),)  # type: ignore[arg-type]
    stored = quantize_state({str(i): weight for i, weight in enumerate(weights)}, kind(rules=rules))
    assert torch.equal(seen, torch.stack([tensor.dequantized() for tensor in stored.tensors]))


@pytest.mark.parametrize("kind", MATRIX_KINDS)
def test_it_is_so_for_rows_of_more_than_a_thousand_columns_too(kind: type[QuantizerSettings]) -> None:
    weights = matrices(2, 5, 2_500, seed=1)
    rows = [on_matrix(weight, 6, kind()) for weight in weights]
    stored = torch.stack([dequantize_rows(found.codes, found.scales) for found in rows])
    assert torch.equal(fake_quantizer(qat(kind()))[1](weights, 6), stored)


def test_the_candidates_of_the_run_are_those_that_count() -> None:
    weights, own = matrices(1, 20, 64, seed=3), GptqLite(clip_candidates=(0.6, 0.5))
    rows = on_matrix(weights[0], 5, own)
    seen = fake_quantizer(qat(own))[1](weights, 5)
    assert torch.equal(seen[0], dequantize_rows(rows.codes, rows.scales))
    assert not torch.equal(fake_quantizer(qat(GptqLite()))[1](weights, 5), seen)


def test_gptq_stores_on_the_same_grid_and_leaves_weights_that_lie_on_it() -> None:
    """Error feedback has nothing to pass on there."""
    weight = fake_quantizer(qat(Gptq()))[1](matrices(1, 24, 32, seed=5), 6)[0]
    inputs = torch.randn(200, 32, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    found = gptq(
        "blocks.0.mlp.weight",
        weight,
        6,
        Gptq(),
        MatrixStatistics(inputs.T @ inputs, torch.ones(24, dtype=torch.float64)),
    )
    torch.testing.assert_close(dequantize_rows(found.codes, found.scales), weight, rtol=1e-6, atol=0)


def test_every_method_has_a_grid_or_none_before_training_has_ended() -> None:
    without = {method for method, kind in QUANTIZER_OF_METHOD.items() if kind.qat_grid is None}
    assert without == {"ecsq"}


@given(st.integers(1, 20), st.integers(1, 2_500), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_upper_quantiles_are_torchs_bit_for_bit(rows: int, columns: int, seed: int) -> None:
    magnitudes = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).abs()
    expected = torch.stack([torch.quantile(magnitudes, quantile, dim=1) for quantile in REFERENCE_QUANTILES])
    assert torch.equal(upper_quantiles(magnitudes, REFERENCE_QUANTILES), expected)
