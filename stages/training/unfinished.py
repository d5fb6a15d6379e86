"""Trainings whose result is not published yet: those that a store holds the files of, and which go on now.

It needs neither Prefect nor torch.
"""

from dataclasses import dataclass
from pathlib import Path

from schemas.train_settings import ScheduleSettings
from stages.processes.locks import is_free
from stages.training.job import TrainingJob
from stages.training.metrics import LINES_NAME


@dataclass(frozen=True)
class Unfinished:
    """A training in the making, or one that was interrupted."""

    folder: Path
    lock: Path

    @property
    def lines(self) -> Path:
        """The metrics so far, for `read_lines`."""
        return self.folder / LINES_NAME

    def goes_on(self) -> bool:
        """Whether a process makes it just now."""
        try:
            return not is_free(self.lock)
        except FileNotFoundError:
            return False

    def schedule(self) -> ScheduleSettings | None:
        """How long it will train; None before its process has been given the job."""
        try:
            return TrainingJob.model_validate_json((self.folder / "job.json").read_bytes()).settings.schedule
        except (OSError, ValueError):
            return None


def unfinished_trainings(root: Path) -> list[Unfinished]:
    """All in the store at `root`; the one whose metrics changed last stands last."""
    folders = [path for path in (root / "work" / "train").glob("*/") if ".damaged-" not in path.name]
    found = [Unfinished(path, root / "locks" / f"train-{path.name}.lock") for path in folders]
    return sorted(found, key=_changed)


def _changed(training: Unfinished) -> float:
    try:
        return training.lines.stat().st_mtime
    except FileNotFoundError:
        return 0.0
