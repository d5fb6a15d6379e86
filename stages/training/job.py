"""Job of the worker processes of `train`, and the result of the first."""

from pathlib import Path

from pydantic import NonNegativeFloat, PositiveInt

from schemas.base import Schema
from schemas.runtime import RunOptions
from schemas.settings import TrainSettings
from schemas.train import TrainingFigures


class TrainingJob(Schema):
    """Train `settings` on `shards`, in their order; all files go to `folder`.

    `val_shards` and `tokenizer` serve the scores of held-out text that `runtime` may ask for.
    """

    settings: TrainSettings
    shards: tuple[Path, ...]
    val_shards: tuple[Path, ...] = ()
    tokenizer: Path | None = None
    folder: Path
    runtime: RunOptions


class WrittenSnapshot(Schema):
    """Weights that lie in the job's folder: their file's path from there, and the step that they are of."""

    file: str
    step: PositiveInt
    lr_scale: NonNegativeFloat
    qat_on: bool


class TrainingOutcome(Schema):
    """What lies in the job's folder, and the figures of the run."""

    last: WrittenSnapshot
    ema: WrittenSnapshot | None
    snapshots: tuple[WrittenSnapshot, ...]
    figures: TrainingFigures
