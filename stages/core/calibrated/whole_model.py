"""A whole model through a quantizer that sees one matrix at a time."""

from torch import Tensor

from schemas.quantizer_settings import QuantizerSettings
from stages.core.calibrated.table import QUANTIZERS, MatrixQuantizer
from stages.core.quantizers.by_rules import quantize_matrices
from stages.core.quantizers.quantized import QuantizedModel


def quantize_state(state: dict[str, Tensor], settings: QuantizerSettings) -> QuantizedModel:
    """Each tensor of `state` in the format of the first rule that matches its name; matrices by the quantizer
    whose settings these are.

    Raises FormatRuleError and ValueError as `quantize_matrices` does, and ValueError for a quantizer that
    reads text: that is `quantize_with_text`.
    """
    quantizer = QUANTIZERS[type(settings)]
    if not isinstance(quantizer, MatrixQuantizer):
        raise ValueError(f"method {settings.method} cannot be run without a calibration text")
    function = quantizer.function
    return quantize_matrices(state, settings, lambda name, weight, bits: function(weight, bits, settings))
