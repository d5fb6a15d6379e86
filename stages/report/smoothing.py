"""A curve without its noise. It needs numpy alone."""

import numpy as np
from numpy.typing import NDArray


def running_mean(values: NDArray, share: float = 0.02) -> NDArray:
    """Mean of each value and its neighbours, over a window of `share` of all values; smaller at the ends.
    (n,) -> (n,).
    """
    half = max(1, int(len(values) * share / 2))
    sums = np.concatenate(([0.0], np.cumsum(values, dtype=np.float64)))
    index = np.arange(len(values))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)
