"""Job and messages between a run and the tracking process beside it."""

from pathlib import Path
from typing import Any

from schemas.base import Schema
from schemas.runtime import TrackerName

PROJECT = "fairway"
"""Name of the project (experiment) in every tracker."""


class TrackingJob(Schema):
    """Pass the figures of one training on to `tracker`, under `name`.

    `lines`: the file to which the training adds a line a step. `folder`: the tracker's files, where it has
    some on this machine. `config`: the run's settings by their dotted names.
    """

    tracker: TrackerName
    name: str
    lines: Path
    folder: Path
    config: dict[str, Any]
