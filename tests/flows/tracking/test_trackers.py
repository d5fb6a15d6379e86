"""Each tracker has every step of a training once, though the training was killed and went on.

A tracker whose package is not installed is left out.
"""

import json
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flows.tracking.job import TrackingJob
from flows.tracking.reporting import Reporting
from schemas.stages import STAGES
from stages.training.metrics import LINES_NAME
from tests.faults.chain import Chain

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NAME = "smoke-seed1337-aaaaaaaa-bbbbbbbb"
STEPS = 150


class Training:
    """A training of the preset `smoke`, killed in the middle by `begin`, and finished by `go_on`."""

    def __init__(self, folder: Path) -> None:
        overrides = [f"train.schedule.max_steps={STEPS}"]
        self._command = [sys.executable, "-m", "tests.faults.chain", str(folder / "store"), *overrides]
        self._chain = Chain(folder / "store", overrides)
        self._chain.run("tokenize_corpus")
        self.lines = self._chain.store.work_folder(STAGES["train"], self._chain.key("train")) / LINES_NAME

    def begin(self) -> int:
        """The number of steps until the kill."""
        training = subprocess.Popen([*self._command, "--until", "train"], start_new_session=True)
        while not self.lines.exists() or (done := len(self.lines.read_text().splitlines())) < STEPS // 3:
            assert training.poll() is None
            time.sleep(0.05)
        time.sleep(2)  # for the tracker
        os.killpg(training.pid, signal.SIGKILL)
        training.wait()
        return done

    def go_on(self) -> Path:
        """The table of the finished training."""
        return self._chain.store.fetch(self._chain.run("train").record.result.metrics)


def _in_trackio(folder: Path) -> dict[int, list[float]]:
    with sqlite3.connect(folder / "fairway.db") as database:
        rows = database.execute("SELECT step, metrics FROM metrics WHERE run_name = ?", (NAME,)).fetchall()
    return _by_step((step, json.loads(metrics)["loss"]) for step, metrics in rows)


def _in_tensorboard(folder: Path) -> dict[int, list[float]]:
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(folder / NAME), size_guidance={SCALARS: 0}).Reload()
    return _by_step((event.step, event.value) for event in events.Scalars("loss"))


def _in_mlflow(folder: Path) -> dict[int, list[float]]:
    with sqlite3.connect(folder / "mlflow.db") as database:
        return _by_step(database.execute("SELECT step, value FROM metrics WHERE key = 'loss'").fetchall())


def _in_wandb(folder: Path) -> dict[int, list[float]]:
    from wandb.proto import wandb_internal_pb2

    found = []
    for path in folder.glob("wandb/offline-run-*/*.wandb"):
        for content in _records(path.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(content)
            row = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            found += [(int(row["_step"]), float(row["loss"]))] if "loss" in row else []
    return _by_step(found)


def _records(content: bytes) -> Iterator[bytes]:
    """The records of a W&B file: LevelDB's log format after a header of 7 bytes."""
    at, record = 7, b""
    while at + 7 <= len(content):
        if 32_768 - at % 32_768 < 7:
            at += 32_768 - at % 32_768
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def _by_step(found: Any) -> dict[int, list[float]]:
    values = dict[int, list[float]]()
    for step, value in found:
        values.setdefault(step, []).append(value)
    return values


@pytest.mark.parametrize(
    ("tracker", "read"),
    [
        ("trackio", _in_trackio),
        ("tensorboard", _in_tensorboard),
        ("mlflow", _in_mlflow),
        ("wandb", _in_wandb),
    ],
)
def test_it_has_every_step_of_the_table_once(
    tracker: Any, read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(tracker)
    monkeypatch.setenv("WANDB_MODE", "offline")
    training = Training(tmp_path)
    job = TrackingJob(
        tracker=tracker, name=NAME, lines=training.lines, folder=tmp_path / "tracker", config={"a.b": [1, 2]}
    )
    reporting = Reporting(job)
    seen = training.begin()
    reporting.end(60)
    assert len(read(job.folder)) >= seen  # while it trained, not after
    again = Reporting(job)
    table = training.go_on()
    again.trained(table)
    again.end(60)
    wanted = pq.read_table(table, columns=["step", "loss"]).to_pydict()
    got = read(job.folder)
    assert sorted(got) == wanted["step"] == list(range(1, STEPS + 1))
    assert [got[step] for step in wanted["step"]] == [[pytest.approx(loss)] for loss in wanted["loss"]]


def test_a_tracker_that_hangs_costs_no_step(tmp_path: Path) -> None:
    """Nothing reads what the run says to it, and it never ends by itself."""
    training = Training(tmp_path)
    job = TrackingJob(
        tracker="trackio", name=NAME, lines=training.lines, folder=tmp_path / "tracker", config={}
    )
    reporting = Reporting(job, [sys.executable, "-c", "import time; time.sleep(3600)"])
    table = training.go_on()
    reporting.trained(table)
    began = time.monotonic()
    reporting.end(1)
    assert time.monotonic() - began < 10
    assert pq.read_table(table).num_rows == STEPS
