"""Jobs of the two probes, and what they measured."""

from pathlib import Path

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from schemas.base import Schema
from schemas.model_settings import ModelSettings
from schemas.quantize import QuantizeSpec
from schemas.scoring_settings import ScoringSettings
from schemas.train_settings import TrainSettings


class StepProbeJob(Schema):
    """Take a few steps of `train` on `shards`, then score a few batches of each of `windows`."""

    train: TrainSettings
    shards: tuple[Path, ...]
    scoring: ScoringSettings


class StepProbe(Schema):
    """What was measured. `inside_seconds`: all that the process did after its imports."""

    inside_seconds: NonNegativeFloat
    warmup_seconds: NonNegativeFloat
    steps: PositiveInt
    step_seconds: PositiveFloat
    peak_bytes: NonNegativeInt
    window_seconds: PositiveFloat
    sliding_window_seconds: PositiveFloat | None


class ModelProbeJob(Schema):
    """Quantize a part of a new model, and predict a few thousand tokens in float32."""

    model: ModelSettings
    quantizer: QuantizeSpec
    sequence_length: PositiveInt


class ModelProbe(Schema):
    """Seconds of the whole model, computed from those of its part. `peak_bytes` of the process."""

    inside_seconds: NonNegativeFloat
    quantize_seconds: NonNegativeFloat
    token_seconds: PositiveFloat
    peak_bytes: NonNegativeInt


class Probed(Schema):
    """Both probes, where they were made, and the seconds that a process takes until it works."""

    start_seconds: NonNegativeFloat
    steps: StepProbe | None
    model: ModelProbe | None
