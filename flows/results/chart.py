"""Curves as text, for terminals: each character is a field of 2 × 4 braille dots.

Imports neither Prefect nor torch.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
_BRAILLE = 0x2800
_AXIS = 9
"""Characters left of the picture, for the numbers of the axis."""

Curve = tuple[NDArray, NDArray]
"""x and y of one curve, (n,) each, finite; x does not fall."""


def chart(curves: Sequence[Curve], width: int, height: int, x_max: float) -> list[list[tuple[str, int]]]:
    """`height` lines of parts (text, number of the curve, or −1 for the axis), `width` characters each.

    x reaches from 0 to `x_max`; y from the lowest value to a bound above nearly all. Where curves meet, the
    later one is seen. Raises ValueError for curves without a point.
    """
    values = [y for _, y in curves if len(y)]
    if not values:
        raise ValueError("no point to draw")
    low = min(float(y.min()) for y in values)
    high = max(float(np.quantile(y, 0.97)) for y in values)
    high = max(high, low + 1e-6)
    columns = max(1, width - _AXIS)
    owner = np.full((height, columns), -1)
    dots = np.zeros((height, columns), int)
    for number, (x, y) in enumerate(curves):
        across, down = _pixels(
            *_joined(x, y, 2 * columns, x_max), (2 * columns, 4 * height), (x_max, low, high)
        )
        cells = (down // 4, across // 2)
        fresh = owner[cells] != number
        dots[cells[0][fresh], cells[1][fresh]] = 0
        owner[cells] = number
        np.bitwise_or.at(dots, cells, _DOTS[down % 4, across % 2])
    return [[(_label(row, height, low, high), -1), *_parts(owner[row], dots[row])] for row in range(height)]


def _joined(x: NDArray, y: NDArray, wide: int, x_max: float) -> Curve:
    """The curve with points on its lines, so that a few points make one curve too."""
    if len(x) < 2:
        return x, y
    between = np.linspace(float(x[0]), float(x[-1]), max(2, round(2 * wide * (x[-1] - x[0]) / x_max)))
    every = np.union1d(x, between)
    return every, np.interp(every, x, y)


def _pixels(
    x: NDArray, y: NDArray, size: tuple[int, int], limits: tuple[float, float, float]
) -> tuple[NDArray, NDArray]:
    """Columns and rows of dots for a curve; y above its bound lies on the bound."""
    (wide, tall), (x_max, low, high) = size, limits
    across = np.clip((np.asarray(x) / max(x_max, 1e-9) * (wide - 1)).round(), 0, wide - 1).astype(int)
    share = (np.clip(np.asarray(y, float), low, high) - low) / (high - low)
    return across, ((1 - share) * (tall - 1)).round().astype(int)


def _label(row: int, height: int, low: float, high: float) -> str:
    """The highest value beside the first line, the lowest beside the last."""
    value = {0: f"{high:.3f}", height - 1: f"{low:.3f}"}.get(row, "")
    return f"{value:>{_AXIS - 2}} │"


def _parts(owner: NDArray, dots: NDArray) -> list[tuple[str, int]]:
    """Neighbouring characters of one curve together."""
    parts: list[tuple[str, int]] = []
    for number, code in zip(owner.tolist(), dots.tolist(), strict=True):
        text = chr(_BRAILLE + code) if code else " "
        if parts and parts[-1][1] == number:
            parts[-1] = (parts[-1][0] + text, number)
        else:
            parts.append((text, number))
    return parts
