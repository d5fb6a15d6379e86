"""The plan of a run: for each stage whether it runs and why, its seconds, memory, disk and money."""

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from schemas.base import Schema

Source = Literal["stored", "earlier run", "probe", "assumed", "unknown"]
"""Where the seconds of a stage come from; `assumed` only for stages of a few seconds."""


class PlannedStage(Schema):
    """One stage of the run."""

    stage: str
    cached: bool
    key: str | None = Field(description="None: an earlier stage makes one of its inputs anew")
    reasons: tuple[str, ...] = Field(description="why it runs; empty for a stored result")
    seconds: NonNegativeFloat | None = Field(description="0 for a stored result; None: not known")
    source: Source = Field(description="where the seconds come from")
    details: str = Field(description="the earlier run or the measurement, in words")
    host_bytes: NonNegativeInt = Field(description="peak of main memory of all its processes, about")
    gpu_bytes: NonNegativeInt = Field(description="peak of one GPU's memory; 0: it uses none")
    disk_bytes: NonNegativeInt = Field(description="what it writes into the store at most, about")
    cost: NonNegativeFloat | None = Field(description="money, in the currency of --gpu-hour; None: not asked")


class RunPlan(Schema):
    """What a run will do and take."""

    name: str
    preset: str
    stages: tuple[PlannedStage, ...]
    num_parameters: PositiveInt
    steps: PositiveInt = Field(description="training steps at most")
    tokens: PositiveInt = Field(description="training tokens at most")
    gpus: NonNegativeInt = Field(description="GPUs that the run holds")
    warnings: tuple[str, ...] = Field(description="what will not fit, with the remedy")

    def as_json(self) -> dict[str, Any]:
        """The plan as plain JSON types, with its sums at the top."""
        sums = {"seconds": self.seconds, "unknown": list(self.unknown), "cost": self.cost}
        return sums | self.model_dump(mode="json")

    @property
    def seconds(self) -> float:
        """Sum of the seconds that are known."""
        return sum(stage.seconds or 0.0 for stage in self.stages)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Stages that run and whose seconds are not known."""
        return tuple(stage.stage for stage in self.stages if stage.seconds is None)

    @property
    def cost(self) -> float | None:
        """Money for all stages whose seconds are known; None: not asked."""
        costs = [stage.cost for stage in self.stages if stage.cost is not None]
        return sum(costs) if costs else None
