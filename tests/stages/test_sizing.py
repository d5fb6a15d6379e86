"""Counts of a model that was never filled, and the estimate of its bytes."""

import pytest
import torch
import zstandard

from presets import PRESETS
from schemas.settings import ModelSettings, OptimizerSettings, QuantizerSettings
from stages.core.model import GPT
from stages.core.quantizers.grid import quantize_rows
from stages.sizing import estimated_bytes, measure_model

RULES = QuantizerSettings().rules


def test_counting_needs_no_memory_and_equals_the_real_model() -> None:
    settings = PRESETS["smoke"]().train.model
    size = measure_model(settings, OptimizerSettings(), RULES)
    real = GPT(settings)
    assert size.num_parameters == sum(param.numel() for param in real.parameters())
    assert sum(size.parts.values()) == size.num_parameters


def test_idle_and_frozen_parameters_are_named() -> None:
    spec = PRESETS["reference"]().train
    size = measure_model(spec.model, spec.optimizer, RULES)
    assert sorted(size.idle) == sorted(f"value_embedding.scales.{layer}" for layer in range(9))
    assert set(size.frozen) == {"value_embedding.table.weight", "value_embedding.proj.weight"}


def test_settings_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing_like_this"):
        measure_model(ModelSettings(num_layers=11), OptimizerSettings(frozen=("nothing_like_this",)), RULES)


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
def test_the_estimate_is_within_four_per_cent_for_gaussian_rows(bits: int) -> None:
    weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(bits))
    rows = quantize_rows(weight, bits, 1.0)
    packed = zstandard.compress(rows.codes.numpy().tobytes() + rows.scales.numpy().tobytes(), 22)
    assert estimated_bytes((512, 512), f"int{bits}") == pytest.approx(len(packed), rel=0.04)
