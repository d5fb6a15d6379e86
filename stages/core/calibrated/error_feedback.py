"""Rounding that passes each column's error on to the columns not yet rounded, so that the layer's output
changes least.

Sources: GPTQ, arXiv:2210.17323 (the recursion on the inverse Hessian's Cholesky factor); optimal brain
    surgeon before it.
Shape legend: R rows, C columns.
"""

import torch
from torch import Tensor

_COLUMNS_AT_ONCE = 64  # errors within a block are passed on column by column, to later blocks in one product


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """Upper-triangular U (C, C) float64 with UᵀU = (H + damping·mean(diag H)·I)⁻¹.

    The error e_j of column j, once all later columns have made up for what they can, costs (e_j / U_jj)².
    Raises ValueError for a Hessian that is not finite or has no positive trace.
    """
    values = hessian.double()
    mean = values.diagonal().mean()
    if not bool(torch.isfinite(values).all()) or not bool(mean > 0):
        raise ValueError(
            "has a Hessian that is not finite or is zero: its inputs never varied in the calibration text"
        )
    lower = torch.linalg.cholesky(
        values + damping * mean * torch.eye(len(values), dtype=torch.float64, device=values.device)
    )
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)


def round_with_feedback(weight: Tensor, factor: Tensor, limit: int) -> Tensor:
    """`weight` (…, R, C), in units of the steps, rounded to integers within ±limit; float32 (…, R, C).

    `factor` (…, C, C) as of `inverse_factor`, in the same units: for steps s_j of the columns its column j is
    divided by s_j.
    """
    left, factor = weight.float().clone(), factor.float()
    rounded = torch.empty_like(left)
    columns = left.size(-1)
    for first in range(0, columns, _COLUMNS_AT_ONCE):
        after = min(first + _COLUMNS_AT_ONCE, columns)
        block = left[..., first:after]
        errors = torch.empty_like(block)
        for j in range(first, after):
            column = block[..., j - first]
            rounded[..., j] = column.round().clamp_(-limit, limit)
            error = (column - rounded[..., j]) / factor[..., j, j].unsqueeze(-1)
            errors[..., j - first] = error
            later = factor[..., j, j + 1 : after].unsqueeze(-2)
            block[..., j - first + 1 :] -= error.unsqueeze(-1) * later
        left[..., after:] -= errors @ factor[..., first:after, after:]
    return rounded
