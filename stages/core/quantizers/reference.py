"""The reference's own scheme (parameter-golf pull request 543), as a baseline: kept as it is, faults
included.

Five clip candidates, one for the whole tensor; the candidates are quantiles so high that they lie between the
two largest values of a row; the error that chooses among them is that of the int8 grid; a scale is never
below 1/127; int6 is every fourth int8 level. Shape legend: R rows, C columns.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stages.core.quantizers.grid import FP16_LARGEST, QuantizedRows, largest_of_rows, max_level, round_to_fp16

if TYPE_CHECKING:  # training reaches this module too, and is to know no setting of a quantizer
    from schemas.quantizer_settings import Reference

REFERENCE_QUANTILES = (0.999, 0.9995, 0.9999, 0.99999, 1.0)
SCALE_FLOOR = 1 / 127


def reference(weight: Tensor, bits: int, settings: "Reference") -> QuantizedRows:
    """`weight` float32 (R, C): int8, and below that every 2^(8−bits)-th of its levels.

    Raises ValueError as `quantize_rows` does.
    """
    largest = largest_of_rows(weight)
    codes, scales, clip = _on_reference_grid(weight, bits)
    if bool((scales > FP16_LARGEST).any()):
        raise ValueError(
            f"holds a value of {largest.max():.3g}, whose int{bits} step is beyond fp16: store it as fp32"
        )
    return QuantizedRows(
        codes.to(torch.int8), scales.half(), clip / largest.clamp_min(torch.finfo(torch.float32).tiny)
    )


def fake_reference(weights: Tensor, bits: int) -> Tensor:
    """`weights` (N, R, C) as each matrix would come back from the blob, without gradient; bit for bit on
    the same device.
    """
    grids = [_on_reference_grid(weight, bits) for weight in weights.detach()]
    return torch.stack([codes * scales.unsqueeze(1) for codes, scales, _ in grids])


def upper_quantiles(magnitudes: Tensor, quantiles: tuple[float, ...]) -> Tensor:
    """`torch.quantile` of each row of `magnitudes` (R, C) at high `quantiles`, (Q, R), without sorting
    the whole row.
    """
    ranks = torch.tensor(quantiles, dtype=torch.float32) * (magnitudes.size(1) - 1)
    above, below = ranks.ceil().long(), ranks.long()
    top = magnitudes.topk(magnitudes.size(1) - int(below.min()), dim=1).values
    last = magnitudes.size(1) - 1
    pairs = zip((last - below).tolist(), (last - above).tolist(), (ranks - below).tolist(), strict=True)
    return torch.stack([torch.lerp(top[:, low], top[:, high], share) for low, high, share in pairs])


def _on_reference_grid(weight: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (R, C), fp16 steps (R,) and clips (R,) of a matrix, all as float32.

    Nothing here waits for a GPU.
    """
    clips = upper_quantiles(weight.abs(), REFERENCE_QUANTILES)
    all_scales = round_to_fp16((clips / max_level(8)).clamp_min(SCALE_FLOOR))
    errors = []
    for scales in all_scales:
        error = _codes(weight, scales).mul_(scales.unsqueeze(1)).sub_(weight)
        errors.append(error.square_().mean(dtype=torch.float64))
    best = torch.stack(errors).argmin(dim=0, keepdim=True)  # the first of equal ones
    clip, scales = clips.index_select(0, best)[0], all_scales.index_select(0, best)[0]
    every, limit = 2 ** (8 - bits), max_level(bits)
    return (_codes(weight, scales) / every).round().clamp(-limit, limit), scales * every, clip


def _codes(weight: Tensor, scales: Tensor) -> Tensor:
    limit = max_level(8)
    return (weight / scales.unsqueeze(1)).round_().clamp_(-limit, limit)
