"""Which scores break a rule that ends a training, and what the user is told."""

from typing import Any

from schemas.held_out import Behind, CurvePoint, HeldOut, parse_rules
from schemas.scoring_settings import ScoringSettings
from stages.training.stop_rules import broken_rule


def _curve(*values: float) -> tuple[CurvePoint, ...]:
    return tuple(
        CurvePoint(step=10 * n, share=0.25 * n, val_nats=2 * value, val_bpb=value)
        for n, value in enumerate(values, start=1)
    )


def _asked(**changes: Any) -> HeldOut:
    return HeldOut(every=0.25, tokens=0, scoring=ScoringSettings(), **changes)


def test_a_rule_looks_at_the_first_score_from_its_share_on_and_at_no_other() -> None:
    rules = parse_rules("val_bpb > 2.4 at 40%")
    assert broken_rule(_asked(rules=rules), _curve(3.0)) is None
    assert broken_rule(_asked(rules=rules), _curve(3.0, 2.3, 2.5)) is None
    why = broken_rule(_asked(rules=rules), _curve(3.0, 2.45, 2.0))
    assert why == "at step 20 (50%): val_bpb is 2.4500, and the rule is 'val_bpb > 2.4 at 40%'"


def test_of_several_rules_each_counts() -> None:
    rules = parse_rules("val_bpb > 9 at 25%; val_nats > 4.2 at 50%")
    assert "step 20 (50%): val_nats is 4.4000" in (broken_rule(_asked(rules=rules), _curve(3.0, 2.2)) or "")


def test_a_run_is_compared_with_the_other_at_the_same_share() -> None:
    """Between two points of the other run on the line between them; where it has none, not at all."""
    behind = Behind(run="best", margin=0.1, curve=_curve(3.0, 2.0))
    at_three_eighths = CurvePoint(step=7, share=0.375, val_nats=1, val_bpb=2.61)
    why = broken_rule(_asked(behind=behind), (at_three_eighths,))
    assert why == "at step 7 (38%): val_bpb is 2.6100, more than 0.1 above the 2.5000 of best there"
    assert broken_rule(_asked(behind=behind), (at_three_eighths.derive(val_bpb=2.59),)) is None
    for outside in (0.2, 0.6):
        assert broken_rule(_asked(behind=behind), (at_three_eighths.derive(share=outside),)) is None
