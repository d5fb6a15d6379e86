"""Entropy-constrained scalar quantization with error feedback: steps by what errors cost, bits left to
the coder.

At a given loss the bits are fewest when every weight's rounding costs the same (Gersho and Gray, Vector
Quantization and Signal Compression, 1992, chapter 8): the step of weight (i, j) is c · r_i^(−½) · U_jj, with
r_i the row's weight, U the factor of the inverse Hessian, and one c for the whole model. Shape legend: R
rows, C columns.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.core.calibrated.calibration import MatrixStatistics
from stages.core.calibrated.error_feedback import inverse_factor, round_with_feedback
from stages.core.quantizers.coded_grid import CODE_LIMIT, STEPS_PER_OCTAVE, CodedGrid, quarter_octaves

_ROOM = 1_000  # what the largest weight of a row may have as its code before feedback moves it
_ROW_WEIGHT_FLOOR = 1e-3  # of the mean: rows that the calibration text never used still keep something


@dataclass(frozen=True)
class PreparedMatrix:
    """What is the same for every c: the weight, the factor U (C, C), and how its steps are shaped, in
    quarter octaves.
    """

    weight: Tensor
    factor: Tensor
    step: float
    rows: Tensor
    columns: Tensor

    def multiplier_of_bits(self, bits: int) -> float:
        """The multiplier at which the mean square of the steps is that of an int-`bits` grid for each row."""
        row_steps = self.weight.abs().amax(dim=1).double() / (2 ** (bits - 1) - 1)
        own = (
            self.step
            * quarter_octaves(self.rows).double().unsqueeze(1)
            * quarter_octaves(self.columns).double()
        )
        return float((row_steps.square().mean() / own.square().mean()).sqrt())


def prepare(weight: Tensor, statistics: MatrixStatistics, damping: float) -> PreparedMatrix:
    """`weight` float32 (R, C) with its steps for c = 1, on the device of `statistics`.

    Raises ValueError as `inverse_factor` does.
    """
    weight = weight.to(statistics.hessian.device)
    factor = inverse_factor(statistics.hessian, damping)
    row_weights = statistics.row_weights + _ROW_WEIGHT_FLOOR * statistics.row_weights.mean()
    row_steps, row_mean = _to_quarters(row_weights.rsqrt())
    column_steps, column_mean = _to_quarters(factor.diagonal())
    return PreparedMatrix(weight, factor, row_mean * column_mean, row_steps, column_steps)


def quantize_coded(matrix: PreparedMatrix, multiplier: float) -> tuple[Tensor, CodedGrid]:
    """Codes int16 (R, C) and their grid for c = `multiplier`.

    A row whose largest weight would need a code beyond CODE_LIMIT gets coarser steps, no other one is
    clipped.
    """
    scaled, factor, grid = _in_steps(matrix, multiplier)
    return round_with_feedback(scaled, factor, CODE_LIMIT).to(torch.int16), grid


def quantize_alike(
    matrices: list[PreparedMatrix], multipliers: list[float]
) -> list[tuple[Tensor, CodedGrid]]:
    """`quantize_coded` of matrices of one shape, together: a GPU takes hardly longer for all than for one.

    The codes can differ from those of one alone where a sum is rounded otherwise.
    """
    scaled, factors, grids = zip(*map(_in_steps, matrices, multipliers), strict=True)
    codes = round_with_feedback(torch.stack(scaled), torch.stack(factors), CODE_LIMIT).to(torch.int16)
    return list(zip(codes, grids, strict=True))


def _in_steps(matrix: PreparedMatrix, multiplier: float) -> tuple[Tensor, Tensor, CodedGrid]:
    """Weight (R, C) and factor (C, C) in units of the steps, and the grid of those."""
    step = float(torch.tensor(matrix.step * multiplier, dtype=torch.float32))
    scaled = matrix.weight / quarter_octaves(matrix.columns)
    largest = scaled.abs().amax(dim=1) / (quarter_octaves(matrix.rows) * step)
    raised = torch.ceil(STEPS_PER_OCTAVE * torch.log2((largest / _ROOM).clamp_min(1.0))).to(torch.int8)
    grid = CodedGrid(step, matrix.rows + raised, matrix.columns)
    scaled = scaled / (quarter_octaves(grid.rows) * step).unsqueeze(1)
    return scaled, matrix.factor / quarter_octaves(matrix.columns).double(), grid


def _to_quarters(values: Tensor) -> tuple[Tensor, float]:
    """Positive `values` as int8 quarter octaves around their geometric mean, and that mean."""
    logs = torch.log2(values.double())
    mean = logs.mean()
    quarters = torch.round(STEPS_PER_OCTAVE * (logs - mean)).clamp(-64, 63)
    return quarters.to(torch.int8), math.exp2(float(mean))
