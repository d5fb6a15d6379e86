"""A sweep: settings that vary, a trial for each choice of their values, and what the trials show."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from schemas.base import Schema
from schemas.overrides import as_override
from schemas.seeds import Comparison

DIGITS = 4
"""Significant digits of a value that a range gives."""

ObjectiveName = Literal["val_bpb", "bytes"]
TrialState = Literal["complete", "pruned", "failed"]


class Varied(Schema):
    """Settings that vary together: each takes the same value."""

    settings: tuple[str, ...] = Field(min_length=1)

    @property
    def name(self) -> str:
        return "+".join(self.settings)

    @property
    def short(self) -> str:
        """The last parts of the names, for tables."""
        return "+".join(dict.fromkeys(name.rpartition(".")[2] for name in self.settings))

    def overrides(self, value: str) -> tuple[str, ...]:
        """The settings with this value, as `apply_overrides` reads them."""
        return tuple(f"{name}={value}" for name in self.settings)


class Range(Varied):
    """Numbers from `low` to `high`, both included."""

    kind: Literal["range"] = "range"
    low: float
    high: float
    step: PositiveFloat | None = Field(None, description="distance of the values; None: any, whole: 1")
    log: bool = Field(False, description="even on a logarithmic scale")
    whole: bool = Field(False, description="integers only")

    def text(self, value: float) -> str:
        """A value as text, rounded to DIGITS significant digits, within the range."""
        if self.whole:
            return str(int(value))
        rounded = float(f"{value:.{DIGITS}g}")
        return as_override("", min(max(rounded, self.low), self.high)).removeprefix("=")

    def ends(self) -> tuple[str, ...]:
        """Both ends as text."""
        return tuple(str(int(end)) if self.whole else repr(end) for end in (self.low, self.high))


class Choices(Varied):
    """A list of values."""

    kind: Literal["choices"] = "choices"
    values: tuple[str, ...] = Field(min_length=2)

    def ends(self) -> tuple[str, ...]:
        """Every value as text."""
        return self.values


Variation = Annotated[Range | Choices, Field(discriminator="kind")]


class SweepTrial(Schema):
    """One trial: the values that it had, and what its run gave."""

    number: NonNegativeInt
    state: TrialState
    values: tuple[str, ...] = Field(description="one for each variation")
    val_bpb: float | None = Field(
        None, description="of the packaged model, sliding if scored; None: no score"
    )
    num_bytes: PositiveInt | None = Field(None, description="code and model together; None: no package")
    run_id: str = Field("", description="empty: no run was started")
    run_name: str = ""
    reason: str = Field("", description="why it failed or was pruned, or whose outcome it has")

    def figure(self, objective: ObjectiveName) -> float:
        """The figure to minimize. Raises ValueError for a trial without one."""
        found = self.val_bpb if objective == "val_bpb" else self.num_bytes
        if found is None:
            raise ValueError(f"trial {self.number} has no {objective}: it is {self.state}")
        return float(found)


class Confirmation(Schema):
    """Runs of a trial and of the base with seeds that no trial had, and Welch's test of their figures."""

    trial: NonNegativeInt
    objective: ObjectiveName
    seeds: tuple[NonNegativeInt, ...]
    base_runs: tuple[str, ...] = Field(description="run ids, a run a seed")
    trial_runs: tuple[str, ...] = Field(description="run ids, a run a seed")
    figures: tuple[float, ...] = Field(description="of the objective, a run a seed")
    base_figures: tuple[float, ...]
    comparison: Comparison

    @property
    def passed(self) -> bool:
        return self.comparison.passed


class Sweep(Schema):
    """A sweep as far as it went, complete."""

    label: str
    preset: str
    objectives: tuple[ObjectiveName, ...]
    seed: NonNegativeInt = Field(description="of the suggestions")
    variations: tuple[Variation, ...]
    base: SweepTrial = Field(
        description="the run without any variation, as trial 0 would be; no trial itself"
    )
    trials: tuple[SweepTrial, ...]
    front: tuple[NonNegativeInt, ...] = Field(description="trials that no other beats in every objective")
    confirmation: Confirmation | None = None
    announced: NonNegativeInt | None = Field(None, description="the trial that beats the base; None: none")
    conclusions: tuple[str, ...] = ()

    def trial(self, number: int) -> SweepTrial:
        """Raises KeyError for a number that no trial has."""
        found = {trial.number: trial for trial in self.trials}
        return found[number]

    def complete(self) -> Sequence[SweepTrial]:
        return [trial for trial in self.trials if trial.state == "complete"]
