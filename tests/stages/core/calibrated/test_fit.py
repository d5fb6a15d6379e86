import math
from collections.abc import Callable

import pytest

from stages.core.calibrated.fit import (
    MAX_FIT_TRIES,
    LimitTooSmallError,
    fit_multiplier,
    fit_with_estimates,
)


@pytest.mark.parametrize("start", [1e-5, 1.0, 1e4])
@pytest.mark.parametrize("limit", [11_000, 60_000, 200_000])
def test_the_fit_ends_in_few_tries_within_the_tolerance(start: float, limit: int) -> None:
    tries = []

    def num_bytes(multiplier: float) -> int:
        tries.append(multiplier)
        return int(10_000 + 50_000 * math.log2(1 + 1 / multiplier))

    found = fit_multiplier(num_bytes, start, 1e6, limit, 0.001)
    size = int(10_000 + 50_000 * math.log2(1 + 1 / found))
    assert size <= limit
    assert size >= 0.999 * limit or len(tries) >= MAX_FIT_TRIES
    assert len(tries) <= MAX_FIT_TRIES + 1


def test_the_fit_says_the_smallest_size_where_nothing_fits() -> None:
    with pytest.raises(
        LimitTooSmallError,
        match=r"fit\.limit_bytes = 9999: cannot be met: the smallest possible is 10,000 bytes",
    ):
        fit_multiplier(lambda multiplier: 10_000 + int(100 / multiplier), 1.0, 1_000.0, 9_999, 0.001)


def test_the_fit_takes_the_finest_where_finer_steps_make_no_more_bytes() -> None:
    assert fit_multiplier(lambda multiplier: 5_000, 1.0, 10.0, 1_000_000, 0.001) == 1.0


def package_bytes(multiplier: float) -> int:
    return int(10_000 + 50_000 * math.log2(1 + 1 / multiplier))


@pytest.mark.parametrize(
    ("estimate", "most_packages"),
    [
        (package_bytes, 1),
        (lambda multiplier: package_bytes(multiplier) - 900, 2),
        (lambda multiplier: int(1.01 * package_bytes(multiplier)), 2),
        (lambda multiplier: 70_000, MAX_FIT_TRIES + 3),
    ],
    ids=["right", "900 bytes too few", "1 % too many", "the same for all steps"],
)
def test_estimates_spare_packages_and_never_the_limit(
    estimate: Callable[[float], int], most_packages: int
) -> None:
    made = []

    def num_bytes(multiplier: float) -> int:
        made.append(multiplier)
        return package_bytes(multiplier)

    found = fit_with_estimates(estimate, num_bytes, 1e-5, 1e6, 60_000, 0.001)
    assert 0.999 * 60_000 <= package_bytes(found) <= 60_000
    assert found in made
    assert len(made) <= most_packages


def test_an_estimate_that_is_too_large_refuses_nothing_that_fits() -> None:
    found = fit_with_estimates(lambda multiplier: 70_000, package_bytes, 1.0, 1e6, 60_000, 0.001)
    assert package_bytes(found) <= 60_000
    with pytest.raises(LimitTooSmallError, match="the smallest possible is 10,000 bytes"):
        fit_with_estimates(lambda multiplier: 5_000, package_bytes, 1.0, 1e9, 9_999, 0.001)
