"""Statistics over seeds by scipy: t-intervals, t-tests against a mark or other runs, differences, power.

A mark is a loss to beat. Losses are in nats a token and compare only over the same tokens; `nats_to_bpb`
converts them to bits per byte.
"""

import math
from collections.abc import Sequence
from typing import Any

from scipy import stats

from schemas.seeds import Comparison, Difference, Summary

MIN_SEEDS = 2
CONFIDENCE = 0.95
POWER = 0.8
MAX_SEEDS_NEEDED = 10_000


def nats_to_bpb(nats: float, num_targets: int, num_bytes: int) -> float:
    """Nats a token as bits per byte, over a text of `num_targets` tokens that stand for `num_bytes` bytes."""
    return nats / math.log(2) * num_targets / num_bytes


def summarize(values: Sequence[float]) -> Summary | None:
    """Mean, standard deviation (n − 1) and 95 % t-interval of the mean; None for fewer than two values."""
    count = len(values)
    if count < MIN_SEEDS:
        return None
    mean = math.fsum(values) / count
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * std / math.sqrt(count)
    return Summary(count=count, mean=mean, std=std, low=mean - half, high=mean + half)


def paired_difference(values: Sequence[float], others: Sequence[float]) -> Difference | None:
    """`values` minus `others`, seed by seed; effects that a seed has on both cancel.

    None for fewer than two pairs.

    Raises ValueError for sequences of different length.
    """
    summary = summarize([value - other for value, other in zip(values, others, strict=True)])
    return Difference(**summary.model_dump()) if summary else None


def seeds_needed(
    difference: float,
    std: float,
    alpha: float,
    power: float = POWER,
    samples: int = 1,
    two_sided: bool = False,
) -> int | None:
    """Seeds with which a t-test finds a true `difference` at p < alpha with probability `power`, if `std` is
    the standard deviation of runs.

    samples = 1: a mean against a mark, or paired differences (std of the differences). samples = 2: Welch's
    test between two sets of runs of equal std; the seeds of each. None for more than MAX_SEEDS_NEEDED. By the
    noncentral t distribution (Cohen, Statistical Power Analysis, 1988, chapter 2). Raises ValueError for a
    difference that is not positive.
    """
    if difference <= 0:
        raise ValueError(f"difference = {difference}: must be positive")
    few, many = MIN_SEEDS, MAX_SEEDS_NEEDED
    if _power(difference, std, alpha, many, samples, two_sided) < power:
        return None
    while few < many:
        middle = (few + many) // 2
        if _power(difference, std, alpha, middle, samples, two_sided) < power:
            few = middle + 1
        else:
            many = middle
    return few


def _power(difference: float, std: float, alpha: float, count: int, samples: int, two_sided: bool) -> float:
    if std == 0:
        return 1.0
    degrees = samples * (count - 1)
    shift = difference / std * math.sqrt(count / samples)
    bar = float(stats.t.ppf(1 - alpha / (2 if two_sided else 1), degrees))
    other_tail = float(stats.nct.cdf(-bar, degrees, shift)) if two_sided else 0.0
    return float(stats.nct.sf(bar, degrees, shift)) + other_tail


def beats_mark(
    values: Sequence[float], mark: float, margin: float, alpha: float, planned_looks: int
) -> Comparison | None:
    """One-sided one-sample t-test of "the mean is below mark − margin". None for fewer than two values."""
    if len(values) < MIN_SEEDS:
        return None
    result = interval = None
    if _has_spread(values):
        result = stats.ttest_1samp(values, mark - margin, alternative="less")
        interval = stats.ttest_1samp(values, mark).confidence_interval(CONFIDENCE)
        interval = (mark - float(interval.high), mark - float(interval.low))
    return _comparison("one-sample t", result, interval, values, mark, margin, alpha, planned_looks)


def beats_ledger(
    values: Sequence[float], others: Sequence[float], margin: float, alpha: float, planned_looks: int
) -> Comparison | None:
    """One-sided Welch test (unequal variances) of "the mean is below the others' mean − margin".

    None for fewer than two of either.
    """
    if min(len(values), len(others)) < MIN_SEEDS:
        return None
    result = interval = None
    if _has_spread(values) or _has_spread(others):
        result = stats.ttest_ind(
            values, [other - margin for other in others], equal_var=False, alternative="less"
        )
        bounds = stats.ttest_ind(others, values, equal_var=False).confidence_interval(CONFIDENCE)
        interval = (float(bounds.low), float(bounds.high))
    return _comparison(
        "Welch", result, interval, values, math.fsum(others) / len(others), margin, alpha, planned_looks
    )


def _comparison(
    test: Any,
    result: Any,
    interval: tuple[float, float] | None,
    values: Sequence[float],
    mark: float,
    margin: float,
    alpha: float,
    planned_looks: int,
) -> Comparison:
    better_by = mark - math.fsum(values) / len(values)
    if result is None or not math.isfinite(
        result.statistic
    ):  # equal values: the test divides by their deviation, which is 0
        statistic, p_value, interval = None, 0.0 if better_by > margin else 1.0, None
    else:
        statistic, p_value = float(result.statistic), float(result.pvalue)
    return Comparison(
        test=test,
        mark=mark,
        margin=margin,
        better_by=better_by,
        low=interval[0] if interval else better_by,
        high=interval[1] if interval else better_by,
        statistic=statistic,
        p_value=p_value,
        alpha=alpha,
        look=max(1, len(values) - MIN_SEEDS + 1),
        planned_looks=planned_looks,
    )


def _has_spread(values: Sequence[float]) -> bool:
    return any(value != values[0] for value in values)
