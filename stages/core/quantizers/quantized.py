"""What quantization makes and the blob holds: tensors as integer codes with row scales, or in floating
point.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from schemas.tensor_formats import StoredFormat
from stages.core.quantizers.coded_grid import CodedGrid
from stages.core.quantizers.grid import dequantize_rows

FLOAT_FORMATS = {"fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class QuantizedTensor:
    """One tensor.

    Integer formats: `values` int8 codes (R, C), `scales` fp16 (R,), `clip_ratios` float32 (R,), not stored.
    Format coded: `values` int16 codes (R, C) on `grid`. Floating-point formats: `values` in the tensor's own
    shape, and nothing else.
    """

    name: str
    format: StoredFormat
    values: Tensor
    scales: Tensor | None = None
    clip_ratios: Tensor | None = None
    grid: CodedGrid | None = None

    def dequantized(self) -> Tensor:
        """The float32 tensor that the blob gives back."""
        if self.grid is not None:
            return self.grid.dequantized(self.values)
        return self.values.float() if self.scales is None else dequantize_rows(self.values, self.scales)

    @property
    def stored_bytes(self) -> int:
        """Bytes in the blob before compression, scales included."""
        scale_bytes = 0 if self.scales is None else self.scales.numel() * self.scales.element_size()
        if self.grid is not None:
            scale_bytes = 4 + self.grid.rows.numel() + self.grid.columns.numel()
        return self.values.numel() * self.values.element_size() + scale_bytes


@dataclass(frozen=True)
class QuantizedModel:
    """Every tensor of a model, in the order of its state, and the method that made them."""

    method: str
    tensors: tuple[QuantizedTensor, ...]


def bits_of(tensor_format: StoredFormat) -> int | None:
    """Bits of an integer format, None for a floating-point or coded one."""
    return (
        None
        if tensor_format in FLOAT_FORMATS or tensor_format == "coded"
        else int(tensor_format.removeprefix("int"))
    )
