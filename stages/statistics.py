"""Statistics over seeds: mean, spread, and whether a mark is beaten. scipy does the tests."""

import math
from collections.abc import Sequence
from typing import Any

from scipy import stats

from schemas.seeds import Comparison, Summary

MIN_SEEDS = 2
CONFIDENCE = 0.95


def summarize(values: Sequence[float]) -> Summary | None:
    """Mean, standard deviation (n − 1) and 95 % t-interval of the mean; None for fewer than two values."""
    count = len(values)
    if count < MIN_SEEDS:
        return None
    mean = math.fsum(values) / count
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * std / math.sqrt(count)
    return Summary(count=count, mean=mean, std=std, low=mean - half, high=mean + half)


def beats_mark(values: Sequence[float], mark: float, margin: float, alpha: float, planned_looks: int) -> Comparison | None:
    """One-sided one-sample t-test of "the mean is below mark − margin". None for fewer than two values."""
    if len(values) < MIN_SEEDS:
        return None
    result = stats.ttest_1samp(values, mark - margin, alternative="less") if _has_spread(values) else None
    return _comparison("one-sample t", result, values, mark, margin, alpha, planned_looks)


def beats_ledger(values: Sequence[float], others: Sequence[float], margin: float, alpha: float, planned_looks: int) -> Comparison | None:
    """One-sided Welch test (unequal variances) of "the mean is below the others' mean − margin". None for fewer than two of either."""
    if min(len(values), len(others)) < MIN_SEEDS:
        return None
    spread = _has_spread(values) or _has_spread(others)
    result = stats.ttest_ind(values, [other - margin for other in others], equal_var=False, alternative="less") if spread else None
    return _comparison("Welch", result, values, math.fsum(others) / len(others), margin, alpha, planned_looks)


def _comparison(
    test: Any, result: Any, values: Sequence[float], mark: float, margin: float, alpha: float, planned_looks: int
) -> Comparison:
    better_by = mark - math.fsum(values) / len(values)
    if result is None:  # equal values: the test divides by their deviation, which is 0
        statistic, p_value = (-math.inf, 0.0) if better_by > margin else (0.0, 1.0)
    else:
        statistic, p_value = float(result.statistic), float(result.pvalue)
    return Comparison(
        test=test,
        mark=mark,
        margin=margin,
        better_by=better_by,
        statistic=statistic,
        p_value=p_value,
        alpha=alpha,
        look=max(1, len(values) - MIN_SEEDS + 1),
        planned_looks=planned_looks,
    )


def _has_spread(values: Sequence[float]) -> bool:
    return any(value != values[0] for value in values)
