"""Clip search: for each row the clip ratio whose grid, stored fp16 step included, gives the least squared error.

Source: the "GPTQ-lite" of openai/parameter-golf pull request 543, done for each row and measured on the final grid.
"""

import torch
from torch import Tensor

from schemas.settings import QuantizerSettings
from stages.core.quantizers.grid import QuantizedRows, largest_of_rows, quantize_rows, row_scales, squared_row_errors

CLIP_SEARCH_NUMBERS = 2**20  # float32 numbers worked on at once: 4 MiB, which stays in cache


def gptq_lite(weight: Tensor, bits: int, settings: QuantizerSettings) -> QuantizedRows:
    """`weight` float32 (R, C) with the best of `settings.clip_candidates` for each row. Raises ValueError as `quantize_rows` does."""
    return quantize_rows(weight, bits, best_clip_ratios(weight, bits, settings.clip_candidates))


def best_clip_ratios(weight: Tensor, bits: int, candidates: tuple[float, ...]) -> Tensor:
    """The candidate with the least squared error for each row of `weight` (R, C), float32 (R,); of equal ones the largest."""
    largest = largest_of_rows(weight)
    ratios = torch.tensor(sorted(set(candidates), reverse=True), dtype=torch.float32)
    scales = row_scales(largest, ratios.unsqueeze(1), bits)
    rows_at_once = max(1, CLIP_SEARCH_NUMBERS // (len(ratios) * weight.size(1)))
    blocks = zip(weight.split(rows_at_once), scales.split(rows_at_once, dim=1), strict=True)
    # argmin takes the first of equal errors, and the ratios fall.
    return ratios[torch.cat([squared_row_errors(rows, steps, bits).argmin(dim=0) for rows, steps in blocks])]
