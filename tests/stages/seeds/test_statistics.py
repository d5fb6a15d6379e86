"""Statistics over seeds against worked examples of textbooks and scipy's definitions by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from schemas.seeds import Comparison
from stages.seeds.statistics import (
    beats_ledger,
    beats_mark,
    nats_to_bpb,
    paired_difference,
    seeds_needed,
    summarize,
)


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
    """Values 1, 2, 3 against 4: t = (2 − 4)/(1/√3) = −3.4641 with 2 degrees; p = 0.0371 by the closed
    form of t with 2 degrees.
    """
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
    """Unequal variances and sizes: t = −10/√(1/3 + 100/2)… with Welch–Satterthwaite degrees, computed
    from the definition.
    """
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


def test_values_without_spread_have_no_statistic_and_can_be_recorded() -> None:
    for found in (
        beats_mark([2.5, 2.5], 2.76, 0.25, 0.01, 1),
        beats_ledger([2.5, 2.5], [2.76, 2.76], 0.25, 0.01, 1),
    ):
        assert found is not None
        assert (found.passed, found.statistic, found.low, found.high) == (
            True,
            None,
            found.better_by,
            found.better_by,
        )
        assert Comparison.model_validate_json(found.model_dump_json()) == found


def test_looks_are_counted_from_the_second_seed() -> None:
    found = beats_mark([2.0, 2.1, 2.2, 2.3], 3.0, 0.005, 0.01, 9)
    assert found is not None
    assert (found.look, found.planned_looks) == (3, 9)
    assert found.alpha_each_look == pytest.approx(0.01 / 9)


def test_nats_become_bits_per_byte_by_the_bytes_a_token() -> None:
    """The reference's validation set: 62,021,846 tokens, 2.4359 bytes each; 0.005 nats are 0.00296 bpb,
    1.9876 nats 1.1772 bpb.
    """
    num_bytes = round(62_021_846 * 2.4359)
    assert nats_to_bpb(0.005, 62_021_846, num_bytes) == pytest.approx(0.005 / 0.693147 / 2.4359, rel=1e-5)
    assert nats_to_bpb(0.005, 62_021_846, num_bytes) == pytest.approx(0.00296, abs=5e-6)
    assert nats_to_bpb(math.log(2), 100, 100) == pytest.approx(1.0)


def test_the_interval_of_the_difference_to_a_mark_by_hand() -> None:
    """Values 1, 2, 3 against 4.5: 2.5 ± t(0.975, 2)/√3 with t = 4.302653."""
    found = beats_mark([1.0, 2.0, 3.0], 4.5, 0.5, 0.05, 2)
    assert found is not None
    half = 4.302653 / math.sqrt(3)
    assert (found.low, found.high) == (
        pytest.approx(2.5 - half, abs=1e-6),
        pytest.approx(2.5 + half, abs=1e-6),
    )


def test_the_interval_of_welch_by_hand() -> None:
    """Means 10 and 20, standard error √(1/3 + 32/3) = √11, 3.185 degrees."""
    found = beats_ledger([9.0, 10.0, 11.0], [12.0, 20.0, 28.0, 20.0], 0.0, 0.05, 1)
    assert found is not None
    assert found.better_by == 10
    a, b = 1 / 3, 32 / 3
    degrees = (a + b) ** 2 / (a**2 / 2 + b**2 / 3)
    half = float(stats.t.ppf(0.975, degrees)) * math.sqrt(11)
    assert (found.low, found.high) == (pytest.approx(10 - half), pytest.approx(10 + half))
    assert found.low < 0 < found.high


def test_equal_values_have_an_interval_of_one_point() -> None:
    found = beats_mark([2.5, 2.5], 3.0, 0.25, 0.01, 1)
    assert found is not None
    assert (found.low, found.high) == (0.5, 0.5)


def test_pairs_of_a_worked_example() -> None:
    """Student's sleep data (Biometrika 1908; R's t.test(extra ~ group, paired = TRUE)): mean 1.58,
    interval 0.7001 to 2.4599, p 0.0028.
    """
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = paired_difference(second, first)
    assert found is not None
    assert found.count == 10
    assert found.mean == pytest.approx(1.58)
    assert (found.low, found.high) == (pytest.approx(0.7001142, abs=1e-6), pytest.approx(2.4598858, abs=1e-6))
    assert found.is_shown
    assert paired_difference([1.0], [2.0]) is None
    with pytest.raises(ValueError, match="shorter"):
        paired_difference([1.0, 2.0, 3.0], [1.0, 2.0])


def test_what_a_seed_does_to_both_cancels_out() -> None:
    found = paired_difference([1.1, 5.1, 9.1], [1.0, 5.0, 9.0])
    assert found is not None
    assert found.std == pytest.approx(0, abs=1e-12)
    assert found.is_shown
    assert not paired_difference([1.1, 4.9], [1.0, 5.0]).is_shown  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("effect", "alpha", "power", "samples", "two_sided", "expected"),
    [
        (0.5, 0.05, 0.8, 1, False, 27),  # as G*Power 3.1 gives
        (0.5, 0.05, 0.8, 1, True, 34),
        (0.5, 0.05, 0.8, 2, True, 64),  # Cohen 1988, table 2.4.1: medium effect, 64 in each group
        (0.8, 0.05, 0.8, 2, True, 26),  # large effect, 26 in each group
        (0.2, 0.05, 0.8, 2, True, 394),  # small effect (393 in Cohen's rounded table)
    ],
)
def test_seeds_needed_are_those_of_the_tables(
    effect: float, alpha: float, power: float, samples: int, two_sided: bool, expected: int
) -> None:
    assert seeds_needed(3 * effect, 3.0, alpha, power, samples, two_sided) == expected


def test_seeds_needed_find_the_difference_as_often_as_promised() -> None:
    """By simulation: with that many seeds about 80 % of the tests pass, with two fewer clearly less than
    promised.
    """
    count = seeds_needed(0.005, 0.004, 0.01)
    assert count is not None
    draws = np.random.default_rng(0).normal(2.9 - 0.005, 0.004, (4000, count))
    passed = stats.ttest_1samp(draws, 2.9, axis=1, alternative="less").pvalue < 0.01
    assert 0.79 < passed.mean() < 0.9
    fewer = stats.ttest_1samp(draws[:, :-2], 2.9, axis=1, alternative="less").pvalue < 0.01
    assert fewer.mean() < 0.79


def test_seeds_needed_at_the_edges() -> None:
    assert seeds_needed(1.0, 0.0, 0.01) == 2
    assert seeds_needed(1e-6, 1.0, 0.01) is None
    with pytest.raises(ValueError, match="difference = 0"):
        seeds_needed(0.0, 1.0, 0.01)
