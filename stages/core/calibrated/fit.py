"""The multiplier of all steps whose package meets a limit of bytes."""

import math
from collections.abc import Callable

# Three or four do, but the bytes of a model of a few kilobytes jump between neighbouring steps.
MAX_FIT_TRIES = 16
_ROUNDS_BY_ESTIMATE = 3
_TRIES_BY_LINE = 6
# Steps much coarser than those of the start can have codes that no coder holds.
_MAX_OCTAVES = 2.0
# A try lies so much of the bracket away from its ends.
_MARGIN = 0.002

_Size = tuple[float, int]
"""A multiplier and the bytes of its package."""


class LimitTooSmallError(ValueError):
    """No steps make a package within the limit.

    The message begins with the setting's name and says what is the smallest.
    """

    def __init__(self, limit_bytes: int, smallest_bytes: int) -> None:
        super().__init__(
            f"quantize.fit.limit_bytes = {limit_bytes}: cannot be met: the smallest possible is "
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

    def search(size: Callable[[float], int], begin: float) -> float:
        return fit_multiplier(
            size, begin, coarsest, limit_bytes, tolerance_fraction, bytes_per_octave, one_more
        )

    tolerance = limit_bytes * tolerance_fraction
    multiplier = start
    for _ in range(_ROUNDS_BY_ESTIMATE):
        try:
            multiplier = search(corrected, multiplier)
        except LimitTooSmallError:
            break
        size = num_bytes(multiplier)
        # Far below the limit a search ends where finer steps make no more bytes, if its estimates are right.
        ended_below = corrected(multiplier) < limit_bytes - tolerance
        if size <= limit_bytes and (
            size >= limit_bytes - tolerance
            or (ended_below and abs(size - corrected(multiplier)) <= tolerance)
        ):
            return multiplier
        correction = size - estimates[multiplier]
    return search(num_bytes, start)


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

    Bytes fall nearly linearly with the multiplier's logarithm: at first by `bytes_per_octave`, then along the
    line through the last sizes, halving the bracket at each fourth. No step is wider than two octaves. Ends
    early with the finest that fits where finer steps no longer make more bytes. Raises LimitTooSmallError
    when `coarsest` is too large.
    """
    wanted = limit_bytes * (1 - tolerance_fraction / 2)
    fits: _Size | None = None
    over: _Size | None = None
    before: _Size | None = None
    multiplier = min(start, coarsest)
    for tries in range(1, MAX_FIT_TRIES + 1):
        size = num_bytes(multiplier)
        progress(tries)
        if size > limit_bytes:
            if multiplier >= coarsest:
                raise LimitTooSmallError(limit_bytes, size)
            over = multiplier, size
        else:
            if fits and not over and size <= fits[1] and multiplier <= fits[0] / 2**_MAX_OCTAVES:
                break
            fits = multiplier, size
            if size >= limit_bytes * (1 - tolerance_fraction):
                break
        if fits is not None and over is not None:
            multiplier = _between(over, fits, wanted, halve=tries % 4 == 0)
        else:
            last = multiplier, size
            slope = bytes_per_octave if before is None else _bytes_per_octave(before, last)
            octaves = (size - wanted) / slope if slope > 0 and tries <= _TRIES_BY_LINE else math.inf
            octaves = min(abs(octaves), _MAX_OCTAVES)
            multiplier = min(multiplier * 2.0 ** math.copysign(octaves, size - wanted), coarsest)
            before = last
    if fits is None:
        size = num_bytes(coarsest)
        if size > limit_bytes:
            raise LimitTooSmallError(limit_bytes, size)
        return coarsest
    return fits[0]


def _bytes_per_octave(one: _Size, other: _Size) -> float:
    return (one[1] - other[1]) / math.log2(other[0] / one[0]) if one[0] != other[0] else 0.0


def _between(over: _Size, fits: _Size, wanted: float, *, halve: bool) -> float:
    low, high = math.log2(over[0]), math.log2(fits[0])
    share = 0.5 if halve else (over[1] - wanted) / (over[1] - fits[1])
    return 2.0 ** (low + (high - low) * min(max(share, _MARGIN), 1 - _MARGIN))
