"""Median stopping rule (Golovin et al., Google Vizier, 2017) as stop rules of a training.

A training ends if its held-out score at a share of the run is worse than the median of the earlier trials at
that share. Trials run one after the other. So the medians are known before a trial starts, and its training
needs no connection to the search.
"""

from collections.abc import Sequence
from statistics import median

from schemas.held_out import CurvePoint, StopRule

FEWEST_TRIALS = 5
"""Complete trials before the first one is pruned; Optuna's MedianPruner has the same."""
FIRST_SHARE = 0.2
"""Share of the run before which no trial is pruned: warm-up says little about the end."""
_SLACK = 1e-9

Curve = Sequence[CurvePoint]


def median_rules(curves: Sequence[Curve], every: float) -> tuple[StopRule, ...]:
    """The rules for the next trial: one at each multiple of the share `every` from FIRST_SHARE on.

    `curves` are those of the complete trials, in bits per byte. There is no rule before FEWEST_TRIALS curves.
    """
    scored = [curve for curve in curves if curve]
    if len(scored) < FEWEST_TRIALS:
        return ()
    rules = []
    for count in range(1, int(1 / every + _SLACK) + 1):
        share = count * every
        values = [value for curve in scored if (value := _at(curve, share)) is not None]
        if FIRST_SHARE - _SLACK <= share < 1 - _SLACK and len(values) >= FEWEST_TRIALS:
            rules.append(StopRule(figure="val_bpb", limit=median(values), at=share))
    return tuple(rules)


def _at(curve: Curve, share: float) -> float | None:
    """The first score at or after the share, which is the one that a stop rule tests."""
    return next((point.val_bpb for point in curve if point.share >= share - _SLACK), None)
