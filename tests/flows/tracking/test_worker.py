"""What a tracker gets of a training: every step once, whatever happens to the training's file."""

import io
import json
import math
import queue
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.tracking.worker import Lines, figures_of, follow


class Remembering:
    """A tracker that keeps what it gets."""

    def __init__(self, last_step: int = 0) -> None:
        self.last_step, self.got, self.is_closed = last_step, dict[int, dict[str, float]](), False

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        assert step not in self.got
        self.got[step] = dict(figures)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        self.is_closed = True


def _rows(*steps: int) -> list[dict[str, Any]]:
    return [{"step": step, "loss": 6.0 / step, "qat_on": step > 2, "val_bpb": None} for step in steps]


def _text(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _steps(lines: Lines) -> list[int]:
    return [row["step"] for row in lines.new()]


def test_a_line_that_is_half_written_waits_for_its_rest(tmp_path: Path) -> None:
    path, text = tmp_path / "metrics.jsonl", _text(_rows(1, 2))
    lines = Lines(path, 0)
    assert _steps(lines) == []  # the training has not begun
    path.write_text(text[:-5])
    assert _steps(lines) == [1]
    path.write_text(text)
    assert _steps(lines) == [2]


def test_a_training_that_goes_on_from_a_checkpoint_sends_no_step_twice(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(_text(_rows(1, 2, 3, 4)))
    lines = Lines(path, 0)
    assert _steps(lines) == [1, 2, 3, 4]
    anew = tmp_path / "new"
    anew.write_text(_text(_rows(1, 2)))
    anew.rename(path)  # as the training replaces it
    assert _steps(lines) == []
    with path.open("a") as file:
        file.write(_text(_rows(3, 4, 5, 6)))
    assert _steps(lines) == [5, 6]


def test_the_tracker_gets_what_it_lacks_of_the_table(tmp_path: Path) -> None:
    """Of a training that is stored already, or whose file is gone when the tracker comes to it."""
    pq.write_table(pa.Table.from_pylist(_rows(1, 2, 3, 4, 5)), tmp_path / "metrics.parquet")
    said = queue.Queue[str | None]()
    said.put(json.dumps({"table": str(tmp_path / "metrics.parquet")}))
    said.put(None)
    tracker, told = Remembering(last_step=2), io.StringIO()
    follow(tracker, Lines(tmp_path / "none.jsonl", tracker.last_step), said, told)
    assert tracker.got == {
        3: {"loss": 2.0, "qat_on": 1.0},
        4: {"loss": 1.5, "qat_on": 1.0},
        5: {"loss": 1.2, "qat_on": 1.0},
    }
    assert tracker.is_closed
    assert json.loads(told.getvalue().splitlines()[-1]) == {"step": 5, "closed": True}


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_step_without_a_score_has_none_in_the_tracker(value: float | None) -> None:
    assert figures_of({"step": 3, "loss": 2.5, "val_bpb": value}) == {"loss": 2.5}
