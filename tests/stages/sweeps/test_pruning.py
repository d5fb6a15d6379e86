"""Pruned is what falls behind the median of the earlier trials, by rules that a training can test alone."""

from schemas.held_out import CurvePoint, HeldOut, parse_rules
from schemas.scoring_settings import ScoringSettings
from stages.sweeps.pruning import median_rules
from stages.training.stop_rules import broken_rule


def curve(level: float) -> list[CurvePoint]:
    """Scores after each fifth of a run, as steps fall: a little after the mark."""
    return [
        CurvePoint(step=8 * n, share=0.2 * n + 0.01 * (n < 5), val_nats=1.0, val_bpb=level - 0.1 * n)
        for n in range(1, 6)
    ]


def test_there_is_no_rule_before_five_curves_and_none_at_the_end() -> None:
    curves = [curve(level) for level in (2.0, 2.1, 2.2, 2.3, 2.9)]
    assert median_rules(curves[:4], 0.2) == ()
    assert median_rules([*curves[:4], []], 0.2) == ()
    rules = median_rules(curves, 0.2)
    assert [(rule.limit, round(rule.at, 3)) for rule in rules] == [
        (2.2 - 0.1 * n, round(0.2 * n, 3)) for n in (1, 2, 3, 4)
    ]


def test_the_first_tenth_prunes_nothing() -> None:
    first, *_ = median_rules([curve(2.0)] * 5, 0.1)
    assert round(first.at, 2) == 0.2


def test_a_training_tests_the_rules_from_their_words() -> None:
    rules = parse_rules("; ".join(map(str, median_rules([curve(2.0 + 0.1 * n) for n in range(5)], 0.2))))
    asked = HeldOut(every=0.2, tokens=0, scoring=ScoringSettings(), rules=rules)
    assert broken_rule(asked, tuple(curve(2.15))) is None
    assert "at step 8" in (broken_rule(asked, tuple(curve(2.25))) or "")
