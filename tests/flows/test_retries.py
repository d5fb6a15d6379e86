"""The table of docs/reliability.md: which error is tried again, how often, with what delay.

Each is raised inside a real task run.
"""

import errno
import re
import sqlite3
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from pydantic import TypeAdapter, ValidationError

from flows.tasks import stage_task as tasks
from schemas.compute_settings import ComputeSettings
from schemas.errors import SpecError, StageError, StorageError
from schemas.runtime import RunOptions
from stages.processes.launch import ChildFailedError, run_child
from stages.store.remote import RemoteError
from stages.store.workspace import DamagedFileError, no_progress

TABLE = Path(__file__).parents[2] / "docs" / "reliability.md"
ONE = ComputeSettings(threads_per_process=1)


def killed_process() -> None:
    run_child(["/bin/sh", "-c", "kill -9 $$"], ONE, no_progress, None)


def process_that_hangs() -> None:
    run_child(["/bin/sleep", "60"], ONE, no_progress, 0.2)


def bad_data() -> None:
    TypeAdapter(int).validate_python("words")


def raised(error: BaseException) -> Any:
    def act() -> None:
        raise error

    return act


ERRORS: dict[str, tuple[Any, type[BaseException], int]] = {
    "SpecError": (raised(SpecError("train.seed = x: must be a number")), SpecError, 1),
    "StageError": (raised(StageError("the training loss is nan at step 3")), StageError, 1),
    "ValidationError": (bad_data, ValidationError, 1),
    "ChildFailedError": (killed_process, ChildFailedError, 3),
    "TimeoutError": (process_that_hangs, TimeoutError, 3),
    "StorageError": (
        raised(StorageError("store: cannot write x (No space left on device)")),
        StorageError,
        3,
    ),
    "DamagedFileError": (raised(DamagedFileError("model.safetensors is damaged")), DamagedFileError, 3),
    "RemoteError": (raised(RemoteError("remote = s3://bucket: runs/one: 503")), RemoteError, 3),
    "OSError": (raised(OSError(errno.EIO, "Input/output error")), OSError, 3),
    "sqlite3.OperationalError": (
        raised(sqlite3.OperationalError("database is locked")),
        sqlite3.OperationalError,
        3,
    ),
    "MemoryError": (raised(MemoryError()), MemoryError, 3),
}


Tried = Callable[[str], list[float]]


@pytest.fixture(scope="module")
def tried(api: str, tmp_path_factory: pytest.TempPathFactory) -> Tried:
    """`tried(name)`: when, in seconds, a stage that ends in that error was tried; each is run once."""

    @cache
    def tried(name: str) -> list[float]:
        act, kind, _ = ERRORS[name]
        at: list[float] = []

        def run_stage(*given: Any) -> Any:
            at.append(time.monotonic())
            act()

        options = RunOptions(store=str(tmp_path_factory.mktemp("store")), retries=2)

        @flow
        def one_stage() -> None:
            tasks.stage_runner(options, "label", [])("quantize", None)

        with pytest.MonkeyPatch.context() as change:
            change.setattr(tasks, "run_stage", run_stage)
            change.setattr(tasks, "BACKOFF_SECONDS", 0.1)
            state = one_stage(return_state=True)
        assert isinstance(state.result(raise_on_failure=False), kind)
        return at

    return tried


@pytest.mark.parametrize("name", ERRORS)
def test_each_error_is_tried_as_often_as_the_table_says(name: str, tried: Tried) -> None:
    at, tries = tried(name), ERRORS[name][2]
    assert len(at) == tries
    row = next(
        line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{name}`")
    )
    assert ("no" if tries == 1 else "yes") == re.split(r"\s*\|\s*", row)[3].split(",")[0], row
    if tries == 3:
        assert at[1] - at[0] >= 0.07
        assert at[2] - at[1] >= 0.14


def test_the_delays_are_as_documented() -> None:
    from prefect.tasks import exponential_backoff

    assert exponential_backoff(tasks.BACKOFF_SECONDS)(3) == [2, 4, 8]
    assert RunOptions().retries == 3
    assert "2, 4 and 8 s" in TABLE.read_text(encoding="utf-8")


def test_the_tables_line_about_retries(figure: Callable[..., None], tried: Tried) -> None:
    counts = {name: len(tried(name)) for name in ERRORS}
    again = [name for name, count in counts.items() if count > 1]
    told = (
        f"{len(again)} tried 3 times with --retries 2 ({', '.join(again)}), {len(counts) - len(again)} once; "
        "as the table says"
    )
    asked = {name: tries for name, (_, _, tries) in ERRORS.items()}
    figure("7", f"{len(counts)} kinds of error raised in a task run", told, counts == asked)
