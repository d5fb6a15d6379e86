"""The multiplier of all steps whose package meets a limit of bytes."""

import math
from collections.abc import Callable

# Four or five do, but the bytes of a model of a few kilobytes jump between neighbouring steps.
MAX_FIT_TRIES = 16
_ROUNDS_BY_ESTIMATE = 3


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

    tolerance = limit_bytes * tolerance_fraction
    for _ in range(_ROUNDS_BY_ESTIMATE):
        try:
            multiplier = fit_multiplier(corrected, start, coarsest, limit_bytes, tolerance_fraction, one_more)
        except LimitTooSmallError:
            break
        size = num_bytes(multiplier)
        # An ending far below the limit is the search's own, as long as the estimate was right.
        if size <= limit_bytes and (
            size >= limit_bytes - tolerance or abs(size - corrected(multiplier)) <= 1
        ):
            return multiplier
        correction = size - estimates[multiplier]
    return fit_multiplier(num_bytes, start, coarsest, limit_bytes, tolerance_fraction, one_more)


def fit_multiplier(
    num_bytes: Callable[[float], int],
    start: float,
    coarsest: float,
    limit_bytes: int,
    tolerance_fraction: float,
    progress: Callable[[int], None] = lambda done: None,
) -> float:
    """The multiplier whose `num_bytes` is at most `limit_bytes` and within the tolerance of it; at most
    MAX_FIT_TRIES sizes are made.

    Bytes fall nearly linearly with the multiplier's logarithm: false position on that, halving when it
    stalls. Ends early with the finest that fits where finer steps no longer make more bytes. Raises
    LimitTooSmallError when `coarsest` is too large.
    """
    wanted = limit_bytes * (1 - tolerance_fraction / 2)
    fits: tuple[float, int] | None = None
    over: tuple[float, int] | None = None
    multiplier = min(start, coarsest)
    for tries in range(1, MAX_FIT_TRIES + 1):
        size = num_bytes(multiplier)
        progress(tries)
        if size > limit_bytes:
            if multiplier >= coarsest:
                raise LimitTooSmallError(limit_bytes, size)
            over = multiplier, size
        else:
            if fits is not None and over is None and size <= fits[1]:
                break
            fits = multiplier, size
            if size >= limit_bytes * (1 - tolerance_fraction):
                break
        multiplier = _next_multiplier(fits, over, wanted, coarsest, bisect=tries % 4 == 0)
    if fits is None:
        size = num_bytes(coarsest)
        if size > limit_bytes:
            raise LimitTooSmallError(limit_bytes, size)
        return coarsest
    return fits[0]


def _next_multiplier(
    fits: tuple[float, int] | None,
    over: tuple[float, int] | None,
    wanted: float,
    coarsest: float,
    bisect: bool,
) -> float:
    if fits is None:
        assert over is not None
        return min(over[0] * 4, coarsest)
    if over is None:
        return fits[0] / 4
    low, high = math.log2(over[0]), math.log2(fits[0])
    share = 0.5 if bisect else (over[1] - wanted) / (over[1] - fits[1])
    return 2.0 ** (low + (high - low) * min(max(share, 0.02), 0.98))
