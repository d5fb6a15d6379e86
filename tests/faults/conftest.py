"""What the faults are measured against: one undisturbed run."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import FULL, finish_chain

# Long enough that kills can hit the training itself.
STEPS = f"train.schedule.max_steps={300 if FULL else 120}"


@dataclass(frozen=True)
class Undisturbed:
    """A finished run that nothing happened to."""

    store: Path
    events: list[dict[str, Any]]

    @property
    def sha256(self) -> str:
        return self.events[-1]["sha256"]

    def seconds(self, stage: str) -> float:
        return next(
            event["seconds"]
            for event in self.events
            if event.get("stage") == stage and event["event"] == "made"
        )

    def folder(self, stage: str, store: Path | None = None) -> Path:
        key = next(
            event["key"] for event in self.events if event.get("stage") == stage and event["event"] == "made"
        )
        return (store or self.store) / "stages" / stage / key[:32]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    return Undisturbed(folder / "store", finish_chain(folder / "store", folder / "logs", STEPS))


@pytest.fixture
def copied(undisturbed: Undisturbed, tmp_path: Path) -> Path:
    """The undisturbed store at another place, on a path with spaces and letters beyond ASCII."""
    store = tmp_path / "ein Lager für 模型"
    shutil.copytree(undisturbed.store, store)
    return store
