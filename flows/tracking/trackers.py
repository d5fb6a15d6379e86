"""The trackers, each as one class: what it has of a run already, and how it takes a step's figures.

A tracker is asked for the last step that it has, so that a training that goes on sends no step twice. Each
imports its library when it is made.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from flows.tracking.job import PROJECT, TrackingJob
from schemas.runtime import TrackerName

_MLFLOW_BATCH = 500
_MLFLOW_VALUE = 500


class Tracker(Protocol):
    """One run in a tracker. `last_step`: the last step that it has of it, 0 for none."""

    last_step: int

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of a step; it may be sent later."""

    def flush(self) -> None:
        """Send what was taken."""

    def close(self) -> None:
        """Send what was taken, and end."""


class Trackio:
    """Trackio: a SQLite file of this machine, or what TRACKIO_SPACE_ID or TRACKIO_SERVER_URL name."""

    def __init__(self, job: TrackingJob) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(job.folder))
        import trackio

        self._run = trackio.init(
            project=PROJECT,
            name=job.name,
            config=dict(job.config),
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )
        self.last_step = max(0, self._run._next_step - 1)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def flush(self) -> None:
        """Trackio's own thread sends twice a second."""

    def close(self) -> None:
        self._run.finish()


class TensorBoard:
    """TensorBoard: event files in a folder of the run."""

    def __init__(self, job: TrackingJob) -> None:
        from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

        self._folder = job.folder / job.name
        self._writer: Any = None
        self.last_step = 0
        if self._folder.is_dir():
            present = EventAccumulator(str(self._folder), size_guidance={SCALARS: 1}).Reload()
            if "loss" in present.Tags()[SCALARS]:
                self.last_step = present.Scalars("loss")[-1].step

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder))
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Wandb:
    """Weights & Biases: its server, or files of this machine with WANDB_MODE=offline.

    Its offline mode does not know what it has of a run, so a file of ours says so.
    """

    def __init__(self, job: TrackingJob) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._run = wandb.init(
            project=PROJECT,
            id=job.name,
            name=job.name,
            config=dict(job.config),
            resume="allow",
            dir=str(job.folder),
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
        )
        self._noted = job.folder / f"{job.name}.json" if self._run.offline else None
        self.last_step = max(0, self._run.step - 1)
        if self._noted is not None and self._noted.is_file():
            self.last_step = int(json.loads(self._noted.read_text(encoding="utf-8"))["step"])

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)
        self.last_step = step

    def flush(self) -> None:
        if self._noted is not None:
            self._noted.write_text(json.dumps({"step": self.last_step}), encoding="utf-8")

    def close(self) -> None:
        self._run.finish()
        self.flush()


class Mlflow:
    """MLflow: a SQLite file of this machine, or what MLFLOW_TRACKING_URI names."""

    def __init__(self, job: TrackingJob) -> None:
        os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{job.folder / 'mlflow.db'}")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        found = self._client.get_experiment_by_name(PROJECT)
        experiment = found.experiment_id if found else self._client.create_experiment(PROJECT)
        runs = self._client.search_runs([experiment], f"attributes.run_name = '{job.name}'")
        self._waiting: list[Any] = []
        self.last_step = 0
        if runs:
            self._id = runs[0].info.run_id
            history = self._client.get_metric_history(self._id, "loss")
            self.last_step = max((item.step for item in history), default=0)
            self._client.set_terminated(self._id, "RUNNING")
            return
        self._id = self._client.create_run(experiment, run_name=job.name).info.run_id
        settings = [Param(name, str(value)[:_MLFLOW_VALUE]) for name, value in job.config.items()]
        for first in range(0, len(settings), 100):  # the most that MLflow takes at once
            self._client.log_batch(self._id, params=settings[first : first + 100])

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._waiting += [Metric(name, value, now, step) for name, value in figures.items()]

    def flush(self) -> None:
        while self._waiting:
            self._client.log_batch(self._id, metrics=self._waiting[:_MLFLOW_BATCH])
            del self._waiting[:_MLFLOW_BATCH]

    def close(self) -> None:
        self.flush()
        self._client.set_terminated(self._id)


TRACKERS: dict[TrackerName, Callable[[TrackingJob], Tracker]] = {
    "trackio": Trackio,
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": Mlflow,
}


def way_to_look(tracker: TrackerName, folder: Path) -> str:
    """The command that shows what the tracker keeps on this machine."""
    return {
        "trackio": f"TRACKIO_DIR={folder} trackio show --project {PROJECT}",
        "tensorboard": f"tensorboard --logdir {folder}",
        "wandb": f"wandb sync {folder}/wandb/offline-run-*, after a run with WANDB_MODE=offline",
        "mlflow": f"mlflow ui --backend-store-uri sqlite:///{folder}/mlflow.db",
    }[tracker]
