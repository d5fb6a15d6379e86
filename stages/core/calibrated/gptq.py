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
from stages.core.quantizers.grid import FP16_SMALLEST, QuantizedRows, max_level, quantize_rows
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
        state, settings, lambda name, weight, bits: gptq(name, weight, bits, settings, statistics[name])
    )


def gptq(name: str, weight: Tensor, bits: int, settings: Gptq, statistics: MatrixStatistics) -> QuantizedRows:
    """`weight` float32 (R, C) with the scales of its rows and codes by error feedback.

    A scale comes from the row's largest value, or from its standard deviation (parameter-golf pull request
    1394): k deviations for int-b spend about log2(2^b / k) + 1 bits a weight once the codes are compressed,
    whatever the row's tails. Raises ValueError as `quantize_rows` does.
    """
    plain = quantize_rows(weight, bits, _clip_ratios(weight, settings.deviations_for(name)))
    order = torch.argsort(statistics.hessian.diagonal(), descending=True, stable=True)
    factor = inverse_factor(statistics.hessian[order][:, order], settings.calibration.damping)
    scaled = (weight / plain.scales.float().unsqueeze(1)).to(order.device)
    rounded = round_with_feedback(scaled[:, order], factor, max_level(bits)).to(torch.int8)
    codes = torch.empty_like(plain.codes)
    codes[:, order.cpu()] = rounded.cpu()
    return QuantizedRows(codes, plain.scales, plain.clip_ratios.clamp_max(1.0))


def _clip_ratios(weight: Tensor, deviations: float | None) -> Tensor | float:
    """The outermost level of each row (R,) as a share of its largest value; above 1 nothing is clipped."""
    if deviations is None:
        return 1.0
    largest = weight.abs().amax(dim=1)
    ratios = deviations * weight.std(dim=1, correction=0) / largest.clamp_min(FP16_SMALLEST)
    return ratios.where(largest > 0, torch.ones_like(ratios))
