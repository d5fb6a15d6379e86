"""Counts of a model that was never filled, and the estimate of its bytes."""

import pytest
import torch
import zstandard

from presets import PRESETS
from schemas.model_settings import ModelSettings
from schemas.quantizer_settings import GptqLite
from schemas.train_settings import OptimizerSettings
from stages.core.model import GPT
from stages.core.quantizers.grid import quantize_rows
from stages.quantizing.sizing import coded_bits, estimated_bytes, measure_model

QUANTIZER = GptqLite()


def test_counting_needs_no_memory_and_equals_the_real_model() -> None:
    settings = PRESETS["smoke"]().train.model
    size = measure_model(settings, OptimizerSettings(), QUANTIZER)
    real = GPT(settings)
    assert size.num_parameters == sum(param.numel() for param in real.parameters())
    assert sum(size.parts.values()) == size.num_parameters


def test_idle_and_frozen_parameters_are_named() -> None:
    spec = PRESETS["reference"]().train
    size = measure_model(spec.model, spec.optimizer, QUANTIZER)
    assert sorted(size.idle) == sorted(f"value_embedding.scales.{layer}" for layer in range(9))
    assert set(size.frozen) == {"value_embedding.table.weight", "value_embedding.proj.weight"}


def test_settings_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing_like_this"):
        measure_model(
            ModelSettings(num_layers=11), OptimizerSettings(frozen=("nothing_like_this",)), QUANTIZER
        )


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
def test_the_estimate_is_within_four_per_cent_for_gaussian_rows(bits: int) -> None:
    weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(bits))
    rows = quantize_rows(weight, bits, 1.0)
    packed = zstandard.compress(rows.codes.numpy().tobytes() + rows.scales.numpy().tobytes(), 22)
    assert estimated_bytes((512, 512), f"int{bits}") == pytest.approx(len(packed), rel=0.04)


def test_the_estimate_of_coded_bits_falls_with_the_loss_that_a_weight_may_cost() -> None:
    assert coded_bits(0.001, 3_685_402) == pytest.approx(2.99)
    assert coded_bits(0.002, 3_685_402) == pytest.approx(2.99 - 0.37)
    assert coded_bits(0.002, 2 * 3_685_402) == pytest.approx(2.99)
    assert coded_bits(100.0, 1) == 0.5


def test_record_needs_no_more_than_the_limit() -> None:
    spec = PRESETS["record"]()
    size = measure_model(spec.train.model, spec.train.optimizer, spec.quantize)
    assert size.estimated_blob_bytes < 0.9 * 16_000_000
