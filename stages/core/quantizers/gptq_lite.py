"""Clip search: for each row the clip ratio whose grid, stored fp16 step included, gives the least squared
error.

Source: the "GPTQ-lite" of openai/parameter-golf pull request 543, done for each row and measured on the final
    grid.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stages.core.quantizers.grid import (
    QuantizedRows,
    fake_quantize,
    largest_of_rows,
    quantize_rows,
    row_scales,
    squared_row_errors,
)

if TYPE_CHECKING:  # training reaches this module too, and is to know no setting of a quantizer
    from schemas.quantizer_settings import GptqLite

CLIP_SEARCH_NUMBERS = 2**20  # float32 numbers worked on at once: 4 MiB, which stays in cache
_CUDA_SEARCH_NUMBERS = 2**27  # half a GiB: a GPU takes longer to start small work than to do it


def gptq_lite(weight: Tensor, bits: int, settings: "GptqLite") -> QuantizedRows:
    """`weight` float32 (R, C) with the best of `settings.clip_candidates` for each row.

    Raises ValueError as `quantize_rows` does.
    """
    # The search itself checks nothing: training calls it too, and a check waits for the GPU.
    largest_of_rows(weight)
    return quantize_rows(weight, bits, best_clip_ratios(weight, bits, settings.clip_candidates))


def fake_gptq_lite(weights: Tensor, bits: int, candidates: tuple[float, ...]) -> Tensor:
    """`weights` (..., R, C) as each matrix would come back from the blob, without gradient; bit for bit
    on the same device.
    """
    rows = weights.detach().flatten(0, -2)
    return fake_quantize(rows, bits, best_clip_ratios(rows, bits, candidates).unsqueeze(1)).view(
        weights.shape
    )


def best_clip_ratios(weight: Tensor, bits: int, candidates: tuple[float, ...]) -> Tensor:
    """The candidate with the least squared error for each row of `weight` (R, C), float32 (R,); of equal
    ones the largest.
    """
    ratios = torch.tensor(sorted(set(candidates), reverse=True), dtype=torch.float32)
    if weight.is_cuda:  # from pinned memory, so that the host need not wait for the GPU
        ratios = ratios.pin_memory().to(weight.device, non_blocking=True)
    scales = row_scales(weight.abs().amax(dim=1), ratios.unsqueeze(1), bits)
    numbers_at_once = _CUDA_SEARCH_NUMBERS if weight.is_cuda else CLIP_SEARCH_NUMBERS
    rows_at_once = max(1, numbers_at_once // (len(ratios) * weight.size(1)))
    blocks = zip(weight.split(rows_at_once), scales.split(rows_at_once, dim=1), strict=True)
    # argmin takes the first of equal errors, and the ratios fall.
    return ratios[torch.cat([squared_row_errors(rows, steps, bits).argmin(dim=0) for rows, steps in blocks])]
