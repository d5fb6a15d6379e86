"""The grid of a coded matrix: a step for each weight, as one number × a row's × a column's, in quarters
of an octave.

Shape legend: R rows, C columns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

STEPS_PER_OCTAVE = 4
CODE_LIMIT = 1_023
_QUARTERS = (1.0, 2.0**0.25, 2.0**0.5, 2.0**0.75)


@dataclass(frozen=True)
class CodedGrid:
    """Steps of a coded matrix: step · 2^(row/4) · 2^(column/4), with `rows` int8 (R,), `columns` int8
    (C,) and a float32 number.
    """

    step: float
    rows: Tensor
    columns: Tensor

    def dequantized(self, codes: Tensor) -> Tensor:
        """Float32 (R, C) from codes int16 (R, C): exact products of stored numbers, so equal on every
        machine.
        """
        row_steps = quarter_octaves(self.rows) * torch.tensor(
            self.step, dtype=torch.float32, device=self.rows.device
        )
        return codes.float() * row_steps.unsqueeze(1) * quarter_octaves(self.columns)


def quarter_octaves(exponents: Tensor) -> Tensor:
    """2^(exponent/4) for int8 exponents, float32; a table and a power of two, so the same on every
    machine.
    """
    whole = exponents.to(torch.int64)
    return torch.ldexp(
        torch.tensor(_QUARTERS, device=exponents.device)[whole % STEPS_PER_OCTAVE],
        torch.div(whole, STEPS_PER_OCTAVE, rounding_mode="floor"),
    )
