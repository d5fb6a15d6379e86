"""Job of the worker processes of `train`, the result of the first, and the end by a rule."""

from pathlib import Path
from typing import Any

from pydantic import NonNegativeFloat, PositiveInt

from schemas.base import Schema
from schemas.runtime import RunOptions
from schemas.train import TrainingFigures
from schemas.train_settings import TrainSettings


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

    def scored_text(self) -> dict[str, Any] | None:
        """Which held-out text the training scores; None where it scores none."""
        return self.runtime.held_out.scored_text() if self.runtime.held_out else None


class BrokenRuleError(Exception):
    """A rule ended the training. The message says which one and at which step."""


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
