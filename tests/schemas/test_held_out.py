"""When held-out text is scored, and the rules that end a run: how users write them."""

from typing import Any

import pytest
from pydantic import ValidationError

from schemas.held_out import parse_behind, parse_rules, parse_share
from schemas.runtime import RunOptions


@pytest.mark.parametrize(
    ("text", "share"), [("5%", 0.05), (" 12.5 % ", 0.125), ("100%", 1.0), ("0.1%", 0.001)]
)
def test_a_share_is_read(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "5", "0%", "0.05%", "101%", "-5%", "nan%", "5%%", "five%", "1e1%"])
def test_a_share_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no share of the run: give one from 0.1% to 100%, as 5%"):
        parse_share(text)


def test_rules_are_read_and_written_alike() -> None:
    rules = parse_rules("val_bpb > 2.4 at 20%; val_nats>3 at 50%")
    assert [str(rule) for rule in rules] == ["val_bpb > 2.4 at 20%", "val_nats > 3 at 50%"]
    assert parse_rules("; ".join(map(str, rules))) == rules


@pytest.mark.parametrize(
    "text",
    [
        *("", "val_bpb > 2.4", "val_bpb < 2.4 at 20%", "loss > 2 at 5%", "val_bpb > nan at 5%"),
        *("val_bpb > 2.4 at 20", "val_bpb > 2.4 at 0%", "val_bpb > 2 at 5%;", "val_bpb > -1 at 5%"),
    ],
)
def test_a_rule_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"write one as 'val_bpb > 2.4 at 20%'|no share of the run"):
        parse_rules(text)


def test_a_run_and_a_margin_are_read() -> None:
    assert parse_behind("demo-seed1-1a2b3c4d:0.02") == ("demo-seed1-1a2b3c4d", 0.02)
    assert parse_behind("last:0") == ("last", 0.0)


@pytest.mark.parametrize("text", ["", "last", "last:", ":0.02", "last:-1", "last:nan", "last:two"])
def test_a_margin_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"write RUN:MARGIN"):
        parse_behind(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [("validate_every", "5"), ("validate_tokens", -1), ("stop_if", "bpb>2"), ("stop_behind", "last")],
)
def test_a_wrong_option_is_refused_by_its_name(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field):
        RunOptions(**{field: value})
