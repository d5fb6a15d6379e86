"""The quantization methods by name, and the format that the rules give a tensor."""

from collections.abc import Callable

import torch
from torch import Tensor

from schemas.quantizer_settings import CALIBRATED_METHODS, QuantizerSettings
from schemas.tensor_formats import format_for
from stages.core.quantizers.gptq_lite import gptq_lite
from stages.core.quantizers.grid import QuantizedRows
from stages.core.quantizers.quantized import FLOAT_FORMATS, QuantizedTensor, bits_of
from stages.core.quantizers.reference import reference
from stages.core.quantizers.round_to_nearest import round_to_nearest

METHODS: dict[str, Callable[[Tensor, int, QuantizerSettings], QuantizedRows]] = {
    "gptq_lite": gptq_lite,
    "round_to_nearest": round_to_nearest,
    "reference": reference,
}
"""Methods that see one matrix and its bits; `gptq` and `ecsq` need the statistics of a calibration text
besides.
"""


class FormatRuleError(ValueError):
    """The rules give a tensor a format that it cannot have."""


def integer_bits(name: str, tensor: Tensor, settings: QuantizerSettings) -> int | None:
    """Bits of the integer format that the rules give the tensor; None for a floating-point one.

    Raises FormatRuleError.
    """
    tensor_format = format_for(name, settings.rules)
    bits = bits_of(tensor_format)
    if bits is not None and tensor.dim() != 2:
        raise FormatRuleError(
            f"{name} has shape {tuple(tensor.shape)} and the rules make it {tensor_format}, but "
            "only matrices have a scale for "
            f'each row: put a rule ("{name}", "fp16" or "fp32") before the one that matches it'
        )
    return bits


def store_as_float(name: str, tensor: Tensor, settings: QuantizerSettings) -> QuantizedTensor:
    """The tensor in the floating-point format of its rule.

    Raises ValueError for values that it cannot hold.
    """
    tensor_format = format_for(name, settings.rules)
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"tensor {name} holds values that are not finite numbers")
    stored = tensor.to(FLOAT_FORMATS[tensor_format], copy=True)
    if not bool(torch.isfinite(stored).all()):
        raise ValueError(
            f"tensor {name} holds a value of {tensor.abs().max():.3g}, beyond fp16: store it as fp32"
        )
    return QuantizedTensor(name, tensor_format, stored)


def needs_text(settings: QuantizerSettings) -> bool:
    """Whether the method reads a calibration text."""
    return settings.method in CALIBRATED_METHODS
