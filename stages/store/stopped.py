"""Runs that a rule ended: `<store>/runs/<run id>/stopped.json`, with a copy of the metrics beside it.

They are this machine's own: a remote store does not know them. It needs neither Prefect nor torch.
"""

import logging
import shutil
from pathlib import Path

from schemas.errors import SpecError, first_line
from schemas.files import FileRef
from schemas.stopped import StoppedRun
from stages.core.checksummed import read_checksummed, write_checksummed
from stages.store.store import Store

log = logging.getLogger(__name__)

STOPPED_NAME = "stopped.json"
METRICS_NAME = "metrics.parquet"


def keep_metrics(store: Store, run_id: str, metrics: Path) -> FileRef:
    """A copy of the metrics that outlives the work folder, in which the same run would go on."""
    path = store.root / "runs" / run_id / METRICS_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(metrics, path)
    return FileRef(
        path=path.relative_to(store.root).as_posix(),
        num_bytes=path.stat().st_size,
        sha256=store.hashes.sha256(path),
    )


def save_stopped(root: Path, run: StoppedRun) -> Path:
    """Write the record, whole or not at all; returns its path."""
    folder = root / "runs" / run.run_id
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / STOPPED_NAME
    write_checksummed(path, run.model_dump_json(indent=1).encode())
    return path


def load_stopped(folder: Path) -> StoppedRun | None:
    """The record in a run's folder; None if there is none. Raises SpecError for one that cannot be read."""
    path = folder / STOPPED_NAME
    if not path.exists():
        return None
    try:
        return StoppedRun.model_validate_json(read_checksummed(path))
    except (OSError, ValueError) as error:
        raise SpecError(
            f"{path}: damaged or of another version ({first_line(error)}). Remove its folder"
        ) from error


def list_stopped(root: Path) -> list[StoppedRun]:
    """Every run that a rule ended, the newest last. One that cannot be read is named in the log."""
    runs = []
    for folder in sorted((root / "runs").glob("*/")):
        try:
            run = load_stopped(folder)
        except SpecError as error:
            log.warning("%s", error)
            continue
        if run is not None:
            runs.append(run)
    return sorted(runs, key=lambda run: run.created_at)


def is_called(run: StoppedRun, wanted: str) -> bool:
    """Whether `wanted` is the beginning of the run's id or name."""
    return bool(wanted) and (run.run_id.startswith(wanted) or run.name.startswith(wanted))
