"""The integer grid of a matrix row: levels −L..L with L = 2^(bits−1) − 1, times one step stored as fp16.

Training under QAT and the exporter round with the same functions, so training sees what its weights would
ship as. Shape legend: R rows, C columns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

FP16_SMALLEST = 2.0**-24
FP16_LARGEST = 65504.0
_FP16_SMALLEST_NORMAL = 2.0**-14


@dataclass(frozen=True)
class QuantizedRows:
    """A matrix on its grid: codes int8 (R, C), scales fp16 (R,), and the clip ratio that made each scale,
    float32 (R,).
    """

    codes: Tensor
    scales: Tensor
    clip_ratios: Tensor


def max_level(bits: int) -> int:
    """Largest level of the symmetric grid: 31 for 6 bits, 127 for 8. Raises ValueError outside 2..8 bits."""
    if not 2 <= bits <= 8:
        raise ValueError(f"bits = {bits}: a code is one signed byte, so give 2 to 8")
    return 2 ** (bits - 1) - 1


def round_to_fp16(values: Tensor) -> Tensor:
    """Non-negative float32 `values` rounded to the nearest fp16 number, ties to even, still as float32.

    Equal to `values.half().float()` below the fp16 limit (above it the result grows on instead of becoming
    inf). Written as bit arithmetic because a compiler may drop a pair of casts, and the grid would then
    differ from the stored one.
    """
    bits = values.contiguous().view(torch.int32)
    normal = ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)
    subnormal = torch.round(values * 2.0**24) * FP16_SMALLEST
    return torch.where(values < _FP16_SMALLEST_NORMAL, subnormal, normal)


def row_scales(largest: Tensor, clip_ratio: Tensor | float, bits: int) -> Tensor:
    """Steps, as fp16 numbers in float32, of rows whose largest magnitudes are `largest`; broadcasts over
    clip ratios.

    A step is at least the smallest fp16 number, so an all-zero row needs no case of its own.
    """
    return round_to_fp16(largest * (clip_ratio / max_level(bits))).clamp_min(FP16_SMALLEST)


def largest_of_rows(weight: Tensor) -> Tensor:
    """Largest magnitude of each row, (R,).

    Raises ValueError if `weight` is no float32 matrix, is empty or is not finite.
    """
    if weight.dim() != 2 or weight.dtype != torch.float32 or weight.numel() == 0:
        raise ValueError(
            f"only float32 matrices have a grid per row; this is {weight.dtype} of shape "
            f"{tuple(weight.shape)}"
        )
    largest = weight.abs().amax(dim=1)
    if not bool(torch.isfinite(largest).all()):
        raise ValueError("holds values that are not finite numbers")
    return largest


def quantize_rows(weight: Tensor, bits: int, clip_ratios: Tensor | float = 1.0) -> QuantizedRows:
    """`weight` float32 (R, C) rounded to the nearest level of the stored grid; larger values take the
    outermost level.

    `clip_ratios`, one number or float32 (R,): the share of the row's largest magnitude that the outermost
    level stands for. Raises ValueError for a non-finite weight and for a step beyond fp16.
    """
    largest = largest_of_rows(weight)
    ratios = torch.as_tensor(clip_ratios, dtype=torch.float32).expand(largest.shape)
    scales = row_scales(largest, ratios, bits)
    if bool((scales > FP16_LARGEST).any()):
        raise ValueError(
            f"holds a value of {largest.max():.3g}, whose int{bits} step is beyond fp16: store it as fp32"
        )
    codes = _to_levels(weight, scales.unsqueeze(1), bits).to(torch.int8)
    return QuantizedRows(codes, scales.half(), ratios.clone())


def dequantize_rows(codes: Tensor, scales: Tensor) -> Tensor:
    """Float32 (R, C) from codes int8 (R, C) and scales fp16 (R,)."""
    return codes.float() * scales.float().unsqueeze(1)


def fake_quantize(weight: Tensor, bits: int, clip_ratios: Tensor | float = 1.0) -> Tensor:
    """`weight` (..., C) as it would come back from the blob with these `clip_ratios`, one number or (...,
    1); without gradient.

    Equal bit for bit to `dequantize_rows(quantize_rows(weight, bits, clip_ratios))` of each matrix; nothing
    in it depends on the data, so it compiles. (A compiled GPU division may be off by 2 ulp, which moves only
    values that lie on a rounding tie.)
    """
    weight = weight.detach()
    scales = row_scales(weight.abs().amax(dim=-1, keepdim=True), clip_ratios, bits)
    return _to_levels(weight, scales, bits) * scales


def squared_row_errors(weight: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Squared error of each row of `weight` (R, C) on the grids with steps `scales` (N, R); float64 (N, R).

    Works on N·R·C numbers at once: callers bound the memory by passing some of the rows at a time.
    """
    steps = scales.unsqueeze(-1)
    error = _to_levels(weight, steps, bits).mul_(steps).sub_(weight)
    return error.square_().sum(dim=-1, dtype=torch.float64)


def _to_levels(weight: Tensor, scales: Tensor, bits: int) -> Tensor:
    limit = max_level(bits)
    return (weight / scales).round_().clamp_(-limit, limit)
