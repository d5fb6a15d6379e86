"""GPTQ on the grid of each row: error feedback with the whole Hessian of the calibration text, largest
inputs first.

Source: arXiv:2210.17323, with its activation order and damping.
"""

import torch
from torch import Tensor

from schemas.quantizer_settings import QuantizerSettings
from stages.core.calibrated.calibration import MatrixStatistics
from stages.core.calibrated.error_feedback import inverse_factor, round_with_feedback
from stages.core.quantizers.grid import QuantizedRows, max_level, quantize_rows


def gptq(
    weight: Tensor, bits: int, settings: QuantizerSettings, statistics: MatrixStatistics
) -> QuantizedRows:
    """`weight` float32 (R, C) with the scales of plain rounding and codes by error feedback.

    Raises ValueError as `quantize_rows` does.
    """
    plain = quantize_rows(weight, bits, 1.0)
    order = torch.argsort(statistics.hessian.diagonal(), descending=True, stable=True)
    factor = inverse_factor(statistics.hessian[order][:, order], settings.calibration.damping)
    scaled = weight / plain.scales.float().unsqueeze(1)
    codes = torch.empty_like(plain.codes)
    codes[:, order] = round_with_feedback(scaled[:, order], factor, max_level(bits)).to(torch.int8)
    return QuantizedRows(codes, plain.scales, plain.clip_ratios)
