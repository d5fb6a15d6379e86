"""One process of a training that scores held-out text on the way: python -m stages.training.scoring_worker
JOB.json RESULT.json

No part of the training's key (`Stage.unkeyed_modules`), because it leaves the weights that
`stages.training.worker` leaves.
"""

from stages.core.trainer import Hooks, Trainer, TrainState
from stages.training.files import TrainingFiles
from stages.training.held_out import ScoringTrainer, read_held_out
from stages.training.job import TrainingJob
from stages.training.metrics import as_columns, curve_of
from stages.training.worker import main


def scoring_trainer(
    job: TrainingJob, files: TrainingFiles, hooks: Hooks, resume: TrainState | None
) -> Trainer:
    """Raises StageError for a tokenizer or validation shards that cannot be scored with, and ValueError where
    settings do not fit this machine or the shards.
    """
    asked = job.runtime.held_out
    assert asked is not None
    assert job.tokenizer is not None
    rows = files.metrics()
    earlier = curve_of(as_columns(rows), job.settings.schedule) if rows else ()
    text = read_held_out(asked, job.val_shards, job.tokenizer, earlier)
    return ScoringTrainer(job.settings, list(job.shards), hooks, resume, text)


if __name__ == "__main__":
    main(scoring_trainer)
