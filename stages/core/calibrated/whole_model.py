"""A whole model through one of the quantization methods."""

from collections.abc import Mapping

from torch import Tensor

from schemas.quantizer_settings import QuantizerSettings
from schemas.tensor_formats import format_for
from stages.core.calibrated.calibration import MatrixStatistics
from stages.core.calibrated.gptq import gptq
from stages.core.quantizers.methods import METHODS, integer_bits, store_as_float
from stages.core.quantizers.quantized import QuantizedModel, QuantizedTensor


def quantize_state(
    state: dict[str, Tensor],
    settings: QuantizerSettings,
    statistics: Mapping[str, MatrixStatistics] | None = None,
) -> QuantizedModel:
    """Each tensor of `state` in the format of the first rule that matches its name; matrices by
    `settings.method`.

    `statistics` of every matrix that the rules store as integers, for gptq; ecsq has `coded_model`. Raises
    FormatRuleError when a rule gives an integer format to anything but a matrix, and ValueError, naming the
    tensor, for values that are not finite or that its format cannot hold, or for a method without its
    statistics.
    """
    if settings.method not in METHODS and (settings.method != "gptq" or statistics is None):
        raise ValueError(
            f"method {settings.method} cannot be run without the statistics of a calibration text"
        )
    tensors = []
    for name, tensor in state.items():
        bits = integer_bits(name, tensor, settings)
        if bits is None:
            tensors.append(store_as_float(name, tensor.detach(), settings))
            continue
        weight = tensor.detach().float()
        try:
            if statistics is not None and settings.method == "gptq":
                rows = gptq(weight, bits, settings, statistics[name])
            else:
                rows = METHODS[settings.method](weight, bits, settings)
        except ValueError as error:
            raise ValueError(f"tensor {name} {error}") from error
        tensors.append(
            QuantizedTensor(name, format_for(name, settings.rules), rows.codes, rows.scales, rows.clip_ratios)
        )
    return QuantizedModel(settings.method, tuple(tensors))
