"""GPTQ on the grid of each row: error feedback with the whole Hessian of the calibration text, largest
inputs first.

Source: arXiv:2210.17323, with its activation order and damping.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from schemas.quantizer_settings import Gptq
from stages.core.calibrated.calibration import Calibration, MatrixStatistics, QuantizedByText
from stages.core.calibrated.error_feedback import inverse_factor, round_with_feedback
from stages.core.quantizers.by_rules import quantize_matrices
from stages.core.quantizers.grid import QuantizedRows, max_level, quantize_rows
from stages.core.quantizers.quantized import QuantizedModel


def gptq_by_text(state: dict[str, Tensor], settings: Gptq, text: Calibration) -> QuantizedByText:
    """`state` (float32) with what the text says of it. Raises as `gptq_model` does."""
    return QuantizedByText(gptq_model(state, settings, text.statistics))


def gptq_model(
    state: dict[str, Tensor], settings: Gptq, statistics: Mapping[str, MatrixStatistics]
) -> QuantizedModel:
    """`state` (float32) with the `statistics` of every matrix that the rules store as integers.

    Raises FormatRuleError and ValueError as `quantize_matrices` does.
    """
    return quantize_matrices(
        state, settings, lambda name, weight, bits: gptq(weight, bits, settings, statistics[name])
    )


def gptq(weight: Tensor, bits: int, settings: Gptq, statistics: MatrixStatistics) -> QuantizedRows:
    """`weight` float32 (R, C) with the scales of plain rounding and codes by error feedback.

    Raises ValueError as `quantize_rows` does.
    """
    plain = quantize_rows(weight, bits, 1.0)
    order = torch.argsort(statistics.hessian.diagonal(), descending=True, stable=True)
    factor = inverse_factor(statistics.hessian[order][:, order], settings.calibration.damping)
    scaled = (weight / plain.scales.float().unsqueeze(1)).to(order.device)
    rounded = round_with_feedback(scaled[:, order], factor, max_level(bits)).to(torch.int8)
    codes = torch.empty_like(plain.codes)
    codes[:, order.cpu()] = rounded.cpu()
    return QuantizedRows(codes, plain.scales, plain.clip_ratios)
