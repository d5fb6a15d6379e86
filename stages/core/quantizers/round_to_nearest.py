"""Plain rounding: each row's largest magnitude is its outermost level."""

from torch import Tensor

from schemas.quantizer_settings import RoundToNearest
from stages.core.quantizers.grid import QuantizedRows, quantize_rows


def round_to_nearest(weight: Tensor, bits: int, settings: RoundToNearest) -> QuantizedRows:
    """`weight` float32 (R, C) on the grid with every clip ratio 1.

    Raises ValueError as `quantize_rows` does.
    """
    return quantize_rows(weight, bits, 1.0)
