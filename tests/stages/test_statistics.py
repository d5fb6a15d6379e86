"""Statistics over seeds against worked examples of textbooks and scipy's definitions by hand."""

import math

import pytest

from stages.statistics import beats_ledger, beats_mark, summarize


def test_mean_deviation_and_interval_of_a_worked_example() -> None:
    """NIST/SEMATECH e-Handbook, 1.3.5.2 in small: n = 5, t(0.975, 4) = 2.776445."""
    summary = summarize([4.0, 5.0, 6.0, 7.0, 8.0])
    assert summary is not None
    assert summary.mean == 6.0
    assert summary.std == pytest.approx(math.sqrt(2.5))
    half = 2.7764451 * math.sqrt(2.5) / math.sqrt(5)
    assert (summary.low, summary.high) == (pytest.approx(6 - half), pytest.approx(6 + half))


def test_one_seed_is_no_sample() -> None:
    assert summarize([1.0]) is None
    assert beats_mark([1.0], 2.0, 0.005, 0.01, 3) is None
    assert beats_ledger([1.0, 1.1], [2.0], 0.005, 0.01, 3) is None


def test_one_sample_test_by_hand() -> None:
    """Values 1, 2, 3 against 4: t = (2 − 4)/(1/√3) = −3.4641 with 2 degrees; p = 0.0371 by the closed form of t with 2 degrees."""
    found = beats_mark([1.0, 2.0, 3.0], 4.5, 0.5, 0.05, 2)
    assert found is not None
    t = -2 * math.sqrt(3)
    assert found.statistic == pytest.approx(t)
    assert found.p_value == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)))
    assert found.better_by == pytest.approx(2.5)
    assert found.passed
    assert not found.passed_for_all_looks  # 0.037 ≥ 0.05 / 2


def test_the_margin_counts() -> None:
    values = [2.990, 2.991, 2.989]
    assert beats_mark(values, 3.0, 0.005, 0.01, 1).passed  # type: ignore[union-attr]
    assert not beats_mark(values, 3.0, 0.010, 0.01, 1).passed  # type: ignore[union-attr]


def test_a_worse_mean_has_a_large_p() -> None:
    found = beats_mark([3.1, 3.2, 3.15], 3.0, 0.005, 0.01, 1)
    assert found is not None
    assert found.p_value > 0.95
    assert found.better_by < 0


def test_welch_of_a_worked_example() -> None:
    """Unequal variances and sizes: t = −10/√(1/3 + 100/2)… with Welch–Satterthwaite degrees, computed from the definition."""
    ours, theirs = [9.0, 10.0, 11.0], [12.0, 20.0, 28.0, 20.0]
    found = beats_ledger(ours, theirs, 0.0, 0.05, 1)
    assert found is not None
    a, b = 1 / 3, (128 / 3) / 4
    assert found.statistic == pytest.approx((10 - 20) / math.sqrt(a + b))
    degrees = (a + b) ** 2 / (a**2 / 2 + b**2 / 3)
    assert degrees == pytest.approx(3.185, abs=0.01)
    assert 0.01 < found.p_value < 0.05
    assert found.mark == 20.0
    assert found.test == "Welch"


def test_values_without_spread_exactly_at_the_bar_are_no_success() -> None:
    found = beats_mark([2.5, 2.5], 2.75, 0.25, 0.01, 1)
    assert found is not None
    assert not found.passed


def test_looks_are_counted_from_the_second_seed() -> None:
    found = beats_mark([2.0, 2.1, 2.2, 2.3], 3.0, 0.005, 0.01, 9)
    assert found is not None
    assert (found.look, found.planned_looks) == (3, 9)
    assert found.alpha_each_look == pytest.approx(0.01 / 9)
