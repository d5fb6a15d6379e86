"""The quantization methods by name, and a whole model through one of them."""

from collections.abc import Callable

import torch
from torch import Tensor

from schemas.settings import QuantizerSettings, format_for
from stages.core.quantizers.gptq_lite import gptq_lite
from stages.core.quantizers.grid import QuantizedRows
from stages.core.quantizers.quantized import FLOAT_FORMATS, QuantizedModel, QuantizedTensor, bits_of
from stages.core.quantizers.round_to_nearest import round_to_nearest

METHODS: dict[str, Callable[[Tensor, int, QuantizerSettings], QuantizedRows]] = {
    "gptq_lite": gptq_lite,
    "round_to_nearest": round_to_nearest,
}


class FormatRuleError(ValueError):
    """The rules give a tensor a format that it cannot have."""


def quantize_state(state: dict[str, Tensor], settings: QuantizerSettings) -> QuantizedModel:
    """Each tensor of `state` in the format of the first rule that matches its name; matrices by `settings.method`.

    Raises FormatRuleError when a rule gives an integer format to anything but a matrix, and ValueError, naming the tensor,
    for values that are not finite or that its format cannot hold.
    """
    return QuantizedModel(settings.method, tuple(_quantize_tensor(name, tensor.detach(), settings) for name, tensor in state.items()))


def _quantize_tensor(name: str, tensor: Tensor, settings: QuantizerSettings) -> QuantizedTensor:
    tensor_format = format_for(name, settings.rules)
    bits = bits_of(tensor_format)
    if bits is None:
        return QuantizedTensor(name, tensor_format, _to_float_format(name, tensor, FLOAT_FORMATS[tensor_format]))
    if tensor.dim() != 2:
        raise FormatRuleError(
            f"{name} has shape {tuple(tensor.shape)} and the rules make it {tensor_format}, but only matrices have a scale for "
            f'each row: put a rule ("{name}", "fp16" or "fp32") before the one that matches it'
        )
    try:
        rows = METHODS[settings.method](tensor.float(), bits, settings)
    except ValueError as error:
        raise ValueError(f"tensor {name} {error}") from error
    return QuantizedTensor(name, tensor_format, rows.codes, rows.scales, rows.clip_ratios)


def _to_float_format(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"tensor {name} holds values that are not finite numbers")
    stored = tensor.to(dtype, copy=True)
    if not bool(torch.isfinite(stored).all()):
        raise ValueError(f"tensor {name} holds a value of {tensor.abs().max():.3g}, beyond fp16: store it as fp32")
    return stored
