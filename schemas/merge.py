"""Merging: snapshots in; one model and its score before and after out."""

from pydantic import Field, NonNegativeFloat, PositiveInt, field_validator

from schemas.averaging_settings import AveragingSettings
from schemas.base import Schema, Volatile
from schemas.compute_settings import ComputeSettings
from schemas.evaluate import Score, only_scores
from schemas.files import FileRef
from schemas.model_settings import ModelSettings
from schemas.scoring_settings import ScoringSettings


class MergeSpec(Schema):
    averaging: AveragingSettings = Field(
        default_factory=AveragingSettings, description="which snapshots, and how"
    )
    scoring: ScoringSettings = Field(
        default_factory=ScoringSettings, description="how last iterate and merged model are scored"
    )
    compute: ComputeSettings = Field(default_factory=ComputeSettings, description="where they are scored")

    _scores_only = field_validator("compute")(only_scores)


class MergedModel(Schema):
    """One set of float32 weights, and what averaging did to the score."""

    model: ModelSettings
    weights: FileRef
    method: str
    steps: tuple[PositiveInt, ...] = Field(description="steps of the snapshots that were averaged")
    lr_scales: tuple[float, ...]
    num_with_qat: int = Field(description="averaged snapshots that were taken under QAT")
    distance_from_last: NonNegativeFloat = Field(
        description="rms of merged minus last iterate over the last iterate's rms, all parameters"
    )
    last: Volatile[Score]
    score: Volatile[Score]

    @property
    def averaged(self) -> str:
        """What it is the mean of, in words."""
        if self.method == "ema_of_steps":
            return f"EMA of {self.steps[-1]} steps"
        return f"{self.method} of {len(self.steps)}"
