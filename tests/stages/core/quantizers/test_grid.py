import os
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.core.quantizers.grid import (
    FP16_LARGEST,
    FP16_SMALLEST,
    dequantize_rows,
    fake_quantize,
    max_level,
    quantize_rows,
    round_to_fp16,
)

ALL_BITS = range(2, 9)


def matrix(rows: int = 48, columns: int = 80, seed: int = 0) -> torch.Tensor:
    """Rows over many orders of magnitude, with a zero row and rows around the fp16 limits of a step."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * torch.logspace(
        -9, 4, rows
    ).unsqueeze(1)
    weight[rows // 2] = 0
    return weight


def test_rounding_to_fp16_equals_a_cast_at_and_around_every_fp16_number_and_every_midpoint() -> None:
    numbers = torch.arange(0x7BFF + 1, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    anchors = torch.cat([numbers, (numbers[1:] + numbers[:-1]) / 2])
    bits = anchors.view(torch.int32).unsqueeze(1) + torch.arange(-2, 3, dtype=torch.int32)
    values = bits.clamp_min(0).view(torch.float32).flatten()
    values = values[values <= FP16_LARGEST]
    assert len(values) > 300_000
    assert torch.equal(round_to_fp16(values), values.half().float())


@pytest.mark.parametrize("bits", ALL_BITS)
def test_rows_are_rounded_to_the_nearest_level_of_the_stored_grid(bits: int) -> None:
    weight = matrix()
    rows = quantize_rows(weight, bits)
    limit = max_level(bits)
    assert rows.codes.dtype == torch.int8
    assert rows.scales.dtype == torch.float16
    assert rows.scales.shape == (48,)
    scales = rows.scales.double().unsqueeze(1)
    levels = torch.arange(-limit, limit + 1, dtype=torch.float64)
    distance = (weight.double().unsqueeze(2) - scales.unsqueeze(2) * levels).abs()
    nearest = distance.amin(dim=2)
    # float32 division may fall on the other side of a tie, nothing more
    assert torch.all((weight.double() - scales * rows.codes).abs() <= nearest + 1e-6 * scales)
    assert int(rows.codes.abs().max()) == limit


@pytest.mark.parametrize("bits", ALL_BITS)
def test_fake_quantization_is_the_exporters_round_to_nearest_bit_for_bit(bits: int) -> None:
    weight = matrix().requires_grad_()
    rows = quantize_rows(weight.detach(), bits)
    seen_in_training = fake_quantize(weight, bits)
    assert torch.equal(seen_in_training, dequantize_rows(rows.codes, rows.scales))
    assert not seen_in_training.requires_grad


def test_fake_quantization_of_stacked_matrices_is_that_of_each() -> None:
    stack = torch.stack([matrix(seed=1), matrix(seed=2)])
    assert torch.equal(fake_quantize(stack, 6), torch.stack([fake_quantize(weight, 6) for weight in stack]))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.skipif(" " in torch.__file__, reason="torch.compile hands the linker torch's own path unquoted")
@pytest.mark.skipif(
    "ATEN_CPU_CAPABILITY" in os.environ,
    reason="torch.compile mixes the cap with instructions of the CPU as it is",
)
def test_compiled_fake_quantization_is_the_exporters_bit_for_bit() -> None:
    weight = matrix()
    rows = quantize_rows(weight, 6)
    compiled = torch.compile(fake_quantize, fullgraph=True)(weight, 6)
    assert torch.equal(compiled, dequantize_rows(rows.codes, rows.scales))


def test_an_all_zero_row_comes_back_as_zeros_with_a_positive_scale() -> None:
    rows = quantize_rows(torch.zeros(3, 5), 6)
    assert torch.equal(dequantize_rows(rows.codes, rows.scales), torch.zeros(3, 5))
    assert torch.all(rows.scales > 0)


def test_a_row_whose_step_is_below_fp16_takes_the_smallest_step() -> None:
    weight = torch.tensor([[1e-7, -1.9e-7, 3e-9]])
    rows = quantize_rows(weight, 8)
    assert rows.scales.float().tolist() == [FP16_SMALLEST]
    assert rows.codes.tolist() == [[2, -3, 0]]


def test_a_step_beyond_fp16_is_refused_and_the_largest_one_is_taken() -> None:
    assert quantize_rows(torch.tensor([[31 * FP16_LARGEST, 0.0]]), 6).scales.float().item() == FP16_LARGEST
    with pytest.raises(ValueError, match="beyond fp16: store it as fp32"):
        quantize_rows(torch.tensor([[31 * 65_600.0, 0.0]]), 6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_refused(bad: float) -> None:
    weight = matrix()
    weight[7, 3] = bad
    with pytest.raises(ValueError, match="not finite"):
        quantize_rows(weight, 6)


@pytest.mark.parametrize(
    "weight",
    [torch.ones(3), torch.ones(1, 2, 3), torch.ones(2, 3).double(), torch.ones(0, 3), torch.ones(3, 0)],
)
def test_only_float32_matrices_with_elements_have_a_grid(weight: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="only float32 matrices"):
        quantize_rows(weight, 6)


@pytest.mark.parametrize("bits", [-1, 0, 1, 9])
def test_bits_outside_of_two_to_eight_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="2 to 8"):
        quantize_rows(torch.ones(2, 2), bits)


@given(st.integers(0, 2**31), st.sampled_from(ALL_BITS), st.floats(0.05, 1.0))
def test_error_is_at_most_half_a_step_inside_the_clip_and_the_excess_beyond_it(
    seed: int, bits: int, ratio: float
) -> None:
    weight = torch.randn(4, 33, generator=torch.Generator().manual_seed(seed))
    rows = quantize_rows(weight, bits, ratio)
    scales = rows.scales.double().unsqueeze(1)
    error = (dequantize_rows(rows.codes, rows.scales).double() - weight.double()).abs()
    excess = (weight.double().abs() - max_level(bits) * scales).clamp_min(0)
    assert torch.all(error <= torch.maximum(excess, scales / 2) * (1 + 1e-5))
    expected = np.float16(weight.abs().amax(1).numpy() * (np.float32(ratio) / np.float32(max_level(bits))))
    assert rows.scales.numpy().tolist() == expected.tolist()


def test_each_row_takes_its_own_clip_ratio() -> None:
    weight = torch.tensor([[1.0, 0.1], [1.0, 0.1]])
    rows = quantize_rows(weight, 8, torch.tensor([1.0, 0.5]))
    assert rows.scales.float().tolist() == pytest.approx([1 / 127, 0.5 / 127], rel=1e-3)
    assert rows.codes[:, 0].tolist() == [127, 127]
    assert rows.clip_ratios.tolist() == [1.0, 0.5]
