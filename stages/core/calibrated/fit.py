"""The multiplier of all steps whose package meets a limit of bytes."""

import math
from collections.abc import Callable

# Three or four do, but the bytes of a model of a few kilobytes jump between neighbouring steps.
MAX_FIT_TRIES = 16
_ROUNDS_BY_ESTIMATE = 3
_TRIES_BY_LINE = 6
_FAR, _MAX_OCTAVES = 2.0, 8.0
_STALLED = 5


class LimitTooSmallError(ValueError):
    """No steps make a package within the limit.

    The message begins with the setting's name and says what is the smallest.
    """

    def __init__(self, limit_bytes: int, smallest_bytes: int) -> None:
        super().__init__(
            f"fit.limit_bytes = {limit_bytes}: cannot be met: the smallest possible is "
            f"{smallest_bytes:,} bytes, script included"
        )


def fit_with_estimates(
    estimated_bytes: Callable[[float], int],
    num_bytes: Callable[[float], int],
    start: float,
    coarsest: float,
    limit_bytes: int,
    tolerance_fraction: float,
    bytes_per_octave: float,
    progress: Callable[[int], None] = lambda done: None,
) -> float:
    """What `fit_multiplier` finds with `num_bytes`, mostly by `estimated_bytes`, which costs less.

    A package is made only where the search by estimates ends. Its bytes correct the next search. Where three
    such rounds do not end within the tolerance, all sizes are those of packages. Raises LimitTooSmallError.
    """
    estimates = dict[float, int]()
    correction = 0
    sizes = 0

    def one_more(_: int) -> None:
        nonlocal sizes
        sizes = min(sizes + 1, MAX_FIT_TRIES)
        progress(sizes)

    def corrected(multiplier: float) -> int:
        if multiplier not in estimates:
            estimates[multiplier] = estimated_bytes(multiplier)
        return estimates[multiplier] + correction

    def search(size: Callable[[float], int]) -> float:
        return fit_multiplier(
            size, start, coarsest, limit_bytes, tolerance_fraction, bytes_per_octave, one_more
        )

    tolerance = limit_bytes * tolerance_fraction
    for _ in range(_ROUNDS_BY_ESTIMATE):
        try:
            multiplier = search(corrected)
        except LimitTooSmallError:
            break
        size = num_bytes(multiplier)
        # An ending far below the limit is the search's own, as long as the estimate was right.
        if size <= limit_bytes and (
            size >= limit_bytes - tolerance or abs(size - corrected(multiplier)) <= 1
        ):
            return multiplier
        correction = size - estimates[multiplier]
    return search(num_bytes)


def fit_multiplier(
    num_bytes: Callable[[float], int],
    start: float,
    coarsest: float,
    limit_bytes: int,
    tolerance_fraction: float,
    bytes_per_octave: float,
    progress: Callable[[int], None] = lambda done: None,
) -> float:
    """The multiplier whose `num_bytes` is at most `limit_bytes` and within the tolerance of it; at most
    MAX_FIT_TRIES sizes are made.

    Bytes fall nearly linearly with the multiplier's logarithm, at first guess by `bytes_per_octave`. Each
    next multiplier lies on the line through the two nearest sizes (secant method), and within the bracket
    once there is one. Ends early with the finest that fits where finer steps no longer make more bytes.
    Raises LimitTooSmallError when `coarsest` is too large.
    """
    wanted = limit_bytes * (1 - tolerance_fraction / 2)
    tried: list[_Size] = []
    fits: _Size | None = None
    over: _Size | None = None
    multiplier = min(start, coarsest)
    for tries in range(1, MAX_FIT_TRIES + 1):
        size = num_bytes(multiplier)
        progress(tries)
        tried.append((multiplier, size))
        if size > limit_bytes:
            if multiplier >= coarsest:
                raise LimitTooSmallError(limit_bytes, size)
            over = tried[-1]
        else:
            if fits is not None and over is None and size <= fits[1] and multiplier <= fits[0] / 2**_FAR:
                break
            fits = tried[-1]
            if size >= limit_bytes * (1 - tolerance_fraction):
                break
        nearest = sorted(tried, key=lambda item: abs(item[1] - wanted))
        slope = _bytes_per_octave(*nearest[:2]) if len(nearest) > 1 else bytes_per_octave
        bytes_per_octave = slope if slope > 0 else bytes_per_octave
        if fits is None or over is None:
            far = slope <= 0 or tries >= _TRIES_BY_LINE
            multiplier *= 2.0 ** _octaves_on(size - wanted, bytes_per_octave, far=far)
            multiplier = min(multiplier, coarsest)
        else:
            aim = math.log2(nearest[0][0]) + (nearest[0][1] - wanted) / bytes_per_octave
            multiplier = _between(over[0], fits[0], aim, halve=tries > _STALLED and tries % 2 == 0)
    if fits is None:
        size = num_bytes(coarsest)
        if size > limit_bytes:
            raise LimitTooSmallError(limit_bytes, size)
        return coarsest
    return fits[0]


_Size = tuple[float, int]
"""A multiplier and the bytes of its package."""


def _bytes_per_octave(one: _Size, other: _Size) -> float:
    if one[0] == other[0]:
        return 0.0
    return (other[1] - one[1]) / math.log2(one[0] / other[0])


def _octaves_on(excess: float, bytes_per_octave: float, *, far: bool) -> float:
    """How far to go while all sizes are on one side of the limit: along the line, or at least `far`."""
    octaves = min(max(excess / bytes_per_octave, -_MAX_OCTAVES), _MAX_OCTAVES)
    return math.copysign(max(abs(octaves), _FAR), octaves) if far else octaves


def _between(over: float, fits: float, aim: float, *, halve: bool) -> float:
    """A multiplier inside the bracket: 2^aim where that lies well inside, or the middle."""
    low, high = math.log2(over), math.log2(fits)
    share = 0.5 if halve else (aim - low) / (high - low)
    return 2.0 ** (low + (high - low) * min(max(share, 0.02), 0.98))
