import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

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

    found = fit_multiplier(num_bytes, start, 1e6, limit, 0.001, 50_000)
    size = int(10_000 + 50_000 * math.log2(1 + 1 / found))
    assert size <= limit
    assert size >= 0.999 * limit or len(tries) >= MAX_FIT_TRIES
    assert len(tries) <= MAX_FIT_TRIES + 1


@pytest.mark.parametrize("bits", [4.5, 5.0, 5.5, 6.0])
@pytest.mark.parametrize("limit", [13_000_000, 16_000_000, 20_000_000])
def test_36_million_weights_take_five_sizes_at_most(bits: float, limit: int) -> None:
    """Real ones took 22,497,561 bytes at the start and fell by .98 bits an octave."""
    tries: list[float] = []

    def num_bytes(multiplier: float) -> int:
        tries.append(multiplier)
        return int(250_000 + 36e6 / 8 * math.log2(1 + 2**bits / multiplier))

    found = fit_multiplier(num_bytes, 1.0, 1e4, limit, 0.001, 36e6 / 8)
    assert len(tries) <= 5
    assert 0.999 * limit <= num_bytes(found) <= limit


@given(st.integers(0, 2**32 - 1), st.integers(2_000, 30_000))
def test_bytes_that_jump_end_within_the_limit_and_two_octaves_a_step(seed: int, limit: int) -> None:
    """As those of a model of a few kilobytes, which hardly follow the line."""
    jumps = random.Random(seed)
    sizes: dict[float, int] = {}

    def num_bytes(multiplier: float) -> int:
        even = 1_000 + 3_000 * math.log2(1 + 1 / multiplier)
        return sizes.setdefault(multiplier, int(even * (1 + 0.03 * jumps.random())))

    found = fit_multiplier(num_bytes, 0.01, 1e6, limit, 0.001, 3_000)
    assert sizes[found] <= limit
    assert len(sizes) <= MAX_FIT_TRIES + 1
    near = sorted(sizes)
    assert all(coarse <= 4.001 * fine for fine, coarse in zip(near, near[1:], strict=False))


def test_the_fit_says_the_smallest_size_where_nothing_fits() -> None:
    with pytest.raises(
        LimitTooSmallError,
        match=r"fit\.limit_bytes = 9999: cannot be met: the smallest possible is 10,000 bytes",
    ):
        fit_multiplier(lambda multiplier: 10_000 + int(100 / multiplier), 1.0, 1_000.0, 9_999, 0.001, 10)


def test_the_fit_takes_the_finest_where_finer_steps_make_no_more_bytes() -> None:
    assert fit_multiplier(lambda multiplier: 5_000, 1.0, 10.0, 1_000_000, 0.001, 1e5) == 1.0


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

    found = fit_with_estimates(estimate, num_bytes, 1e-5, 1e6, 60_000, 0.001, 50_000)
    assert 0.999 * 60_000 <= package_bytes(found) <= 60_000
    assert found in made
    assert len(made) <= most_packages


def test_a_limit_that_no_steps_reach_takes_one_package() -> None:
    """A model of a few kilobytes has no more than so many bytes, however fine its steps are."""
    packages = []

    def filled(multiplier: float) -> int:
        return min(package_bytes(multiplier), 60_000)

    def num_bytes(multiplier: float) -> int:
        packages.append(multiplier)
        return filled(multiplier)

    found = fit_with_estimates(lambda m: filled(m) + 50, num_bytes, 1.0, 1e6, 90_000, 0.001, 50_000)
    assert filled(found) == 60_000
    assert packages == [found]


def test_an_estimate_that_is_too_large_refuses_nothing_that_fits() -> None:
    found = fit_with_estimates(lambda multiplier: 70_000, package_bytes, 1.0, 1e6, 60_000, 0.001, 50_000)
    assert package_bytes(found) <= 60_000
    with pytest.raises(LimitTooSmallError, match="the smallest possible is 10,000 bytes"):
        fit_with_estimates(lambda multiplier: 5_000, package_bytes, 1.0, 1e9, 9_999, 0.001, 50_000)
