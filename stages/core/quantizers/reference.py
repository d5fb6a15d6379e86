"""The reference's own scheme (parameter-golf pull request 543), as a baseline: kept as it is, faults included.

Five clip candidates, one for the whole tensor; the candidates are quantiles so high that they lie between the two largest values of a
row; the error that chooses among them is that of the int8 grid; a scale is never below 1/127; int6 is every fourth int8 level.
"""

import torch
from torch import Tensor

from schemas.settings import QuantizerSettings
from stages.core.quantizers.grid import FP16_LARGEST, QuantizedRows, largest_of_rows, max_level, round_to_fp16

REFERENCE_QUANTILES = (0.999, 0.9995, 0.9999, 0.99999, 1.0)
SCALE_FLOOR = 1 / 127


def reference(weight: Tensor, bits: int, settings: QuantizerSettings) -> QuantizedRows:
    """`weight` float32 (R, C): int8, and below that every 2^(8−bits)-th of its levels. Raises ValueError as `quantize_rows` does."""
    largest = largest_of_rows(weight)
    best_error, best = float("inf"), (largest, torch.empty(0), torch.empty(0))
    for quantile in REFERENCE_QUANTILES:
        clip = torch.quantile(weight.abs(), quantile, dim=1)
        scales = round_to_fp16((clip / max_level(8)).clamp_min(SCALE_FLOOR))
        codes = (weight / scales.unsqueeze(1)).round().clamp(-max_level(8), max_level(8))
        error = (codes * scales.unsqueeze(1) - weight).square().mean(dtype=torch.float64).item()
        if error < best_error:
            best_error, best = error, (clip, scales, codes)
    clip, scales, codes = best
    every = 2 ** (8 - bits)
    limit = max_level(bits)
    if bool((scales * every > FP16_LARGEST).any()):
        raise ValueError(f"holds a value of {largest.max():.3g}, whose int{bits} step is beyond fp16: store it as fp32")
    coarse = (codes / every).round().clamp(-limit, limit).to(torch.int8)
    return QuantizedRows(coarse, (scales * every).half(), clip / largest.clamp_min(torch.finfo(torch.float32).tiny))
