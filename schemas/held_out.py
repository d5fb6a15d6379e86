"""Scores of held-out text while a model trains: when, over how much text, and which score ends the run.

Nothing here bears identity: a score changes neither a weight nor a key.
"""

import re
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from schemas.base import Schema
from schemas.scoring_settings import ScoringSettings

DEFAULT_EVERY = "5%"
SHARE_PATTERN = r"^\s*\d+(\.\d+)?\s*%\s*$"
RULES_PATTERN = r"^\s*val_(bpb|nats)\s*>.+\sat\s.+%\s*$"
BEHIND_PATTERN = r"^.+:\s*\d+(\.\d+)?\s*$"
_RULE = re.compile(r"\s*(val_bpb|val_nats)\s*>\s*(\S+)\s+at\s+(.*)")
_SMALLEST_SHARE = 0.001


class StopRule(Schema):
    """The run ends if `figure` is above `limit` in the first score at or after the share `at`."""

    figure: Literal["val_bpb", "val_nats"]
    limit: PositiveFloat = Field(description="bits per byte, or nats a token")
    at: float = Field(gt=0, le=1, description="share of the run")

    def __str__(self) -> str:
        return f"{self.figure} > {self.limit:g} at {100 * self.at:g}%"


class CurvePoint(Schema):
    """One score of held-out text in a training."""

    step: NonNegativeInt
    share: NonNegativeFloat = Field(description="share of the run that was done")
    val_nats: float = Field(description="nats a token")
    val_bpb: float = Field(description="bits per byte")


class Behind(Schema):
    """The run ends once its val_bpb is more than `margin` above that of another run at the same share."""

    run: str
    margin: NonNegativeFloat = Field(description="bits per byte")
    curve: tuple[CurvePoint, ...]


class HeldOut(Schema):
    """Scores of one training, and the rules that may end it."""

    every: float = Field(gt=0, le=1, description="share of the run between two scores")
    tokens: NonNegativeInt = Field(description="about so many tokens each time, evenly spaced; 0: all")
    scoring: ScoringSettings = Field(description="windows, as merge scores them")
    rules: tuple[StopRule, ...] = ()
    behind: Behind | None = None

    def scored_text(self) -> dict[str, int | str]:
        """What two curves on one validation text must share before they compare."""
        scoring = self.scoring
        return {
            "tokens": self.tokens,
            "sequence_length": scoring.sequence_length,
            "windows": scoring.windows,
        }


def parse_share(text: str) -> float:
    """`5%` -> 0.05. Raises ValueError for what is no share from 0.1 % to 100 %."""
    number = text.strip().removesuffix("%").strip()
    if not re.fullmatch(SHARE_PATTERN, text) or not _SMALLEST_SHARE <= float(number) / 100 <= 1:
        raise ValueError(f"{text!r} is no share of the run: give one from 0.1% to 100%, as 5%")
    return float(number) / 100


def parse_rules(text: str) -> tuple[StopRule, ...]:
    """`val_bpb > 2.4 at 20%`, several with semicolons. Raises ValueError for anything else."""
    rules = []
    for part in text.split(";"):
        found = _RULE.fullmatch(part)
        limit = _positive(found[2]) if found else None
        if found is None or limit is None:
            raise ValueError(
                f"{part.strip()!r} is no rule: write one as 'val_bpb > 2.4 at 20%' (bits per byte) or "
                "'val_nats > 2.9 at 20%' (nats a token), several with semicolons"
            )
        rules.append(StopRule(figure=found[1], limit=limit, at=parse_share(found[3])))
    return tuple(rules)


def parse_behind(text: str) -> tuple[str, float]:
    """`RUN:0.02` -> the run, and the margin in bits per byte. Raises ValueError for anything else."""
    run, _, margin = text.strip().rpartition(":")
    if not run or not re.fullmatch(r"\d+(\.\d+)?", margin.strip()):
        raise ValueError(f"{text!r}: write RUN:MARGIN, the margin in bits per byte, as last:0.02")
    return run, float(margin)


def _positive(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) and float(text) > 0 else None
