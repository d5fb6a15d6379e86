"""Runs side by side: what differs between them, and why."""

from typing import Any

from pydantic import Field, NonNegativeInt

from schemas.base import Schema


class ComparedRun(Schema):
    """A run and the letter by which columns name it."""

    label: str
    name: str
    run_id: str
    created_at: str
    preset: str
    seed: NonNegativeInt


class ComparedSetting(Schema):
    """One setting, with a value for each run."""

    name: str
    unit: str
    values: tuple[Any, ...] = Field(description="as plain JSON types")
    present: tuple[bool, ...] = Field(description="whether the run has the setting at all")

    @property
    def differs(self) -> bool:
        first = (self.values[0], self.present[0])
        return any(pair != first for pair in zip(self.values, self.present, strict=True))


class ComparedStage(Schema):
    """One stage: its key in each run, and for each run after the first why the key is another."""

    stage: str
    # Not `keys`: Prefect takes what has that for a mapping.
    run_keys: tuple[str | None, ...] = Field(description="None: the run has no such stage")
    reasons: tuple[tuple[str, ...], ...] = Field(description="empty: the same key as the first run")


class ComparedFigure(Schema):
    """One figure, with a value for each run; None where a run has none."""

    name: str
    unit: str
    decimals: NonNegativeInt
    values: tuple[float | None, ...]


class ComparedVerdict(Schema):
    """What the audits say of one technique or rule; None where an audit does not name it."""

    key: str
    title: str
    verdicts: tuple[str | None, ...]

    @property
    def differs(self) -> bool:
        return len(set(self.verdicts)) > 1


class ComparedRuns(Schema):
    """Two or more runs against the first of them."""

    runs: tuple[ComparedRun, ...]
    settings: tuple[ComparedSetting, ...] = Field(description="all of them")
    stages: tuple[ComparedStage, ...]
    figures: tuple[ComparedFigure, ...]
    verdicts: tuple[ComparedVerdict, ...] = Field(description="all of them")
    conclusions: tuple[str, ...] = Field(description="what the seeds in the store show, in words")

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(run.label for run in self.runs)
