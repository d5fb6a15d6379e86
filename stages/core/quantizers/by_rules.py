"""Every tensor of a model in the format that the rules give it."""

from collections.abc import Callable

import torch
from torch import Tensor

from schemas.quantizer_settings import QuantizerSettings
from schemas.tensor_formats import format_for
from stages.core.quantizers.grid import QuantizedRows
from stages.core.quantizers.quantized import FLOAT_FORMATS, QuantizedModel, QuantizedTensor, bits_of


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


def quantize_matrices(
    state: dict[str, Tensor],
    settings: QuantizerSettings,
    on_grid: Callable[[str, Tensor, int], QuantizedRows],
) -> QuantizedModel:
    """Each tensor of `state` in the format of the first rule that matches its name.

    A matrix of an integer format is what `on_grid` makes of its name, the matrix (R, C) float32 and the bits.
    Raises FormatRuleError when a rule gives an integer format to anything but a matrix, and ValueError,
    naming the tensor, for values that are not finite or that its format cannot hold.
    """
    tensors = []
    for name, tensor in state.items():
        bits = integer_bits(name, tensor, settings)
        if bits is None:
            tensors.append(store_as_float(name, tensor.detach(), settings))
            continue
        try:
            rows = on_grid(name, tensor.detach().float(), bits)
        except ValueError as error:
            raise ValueError(f"tensor {name} {error}") from error
        tensors.append(
            QuantizedTensor(name, format_for(name, settings.rules), rows.codes, rows.scales, rows.clip_ratios)
        )
    return QuantizedModel(settings.method, tuple(tensors))
