"""The size of a tensor as one number."""

from torch import Tensor


def root_mean_square(values: Tensor) -> float:
    """Of all elements together, in float64; in the unit of `values`."""
    return float(values.double().square().mean().sqrt())
