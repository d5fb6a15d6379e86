"""The process beside a run: python -m flows.tracking.worker

Its standard input holds lines of JSON: the job, then, once the training has ended, the path of its table.
The end of the input ends it, after everything has been sent. Its standard output says in lines of JSON
which step has been sent, or which error ended it.
"""

import json
import math
import os
import queue
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from flows.tracking.job import TrackingJob
from flows.tracking.trackers import TRACKERS, Tracker

POLL_SECONDS = 1.0
ROWS_AT_ONCE = 500


class Lines:
    """The rows that a training adds to its file, each once, in their order.

    A training that goes on from a checkpoint writes the file anew; steps that were given are not given again.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        self._path, self._last, self._at, self._inode = path, last_step, 0, -1

    def new(self) -> Iterator[dict[str, Any]]:
        """The rows since the last call. A line that is half written is left for the next."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._at:
                    self._at, self._inode = 0, status.st_ino
                file.seek(self._at)
                text = file.read()
        except FileNotFoundError:  # not begun yet, or published already
            return
        whole = text[: text.rfind(b"\n") + 1]
        self._at += len(whole)
        for line in whole.splitlines():
            yield from self.unseen([json.loads(line)])

    def unseen(self, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Those rows whose steps have not been given yet."""
        for row in rows:
            if row["step"] > self._last:
                self._last = row["step"]
                yield row


def figures_of(row: Mapping[str, Any]) -> dict[str, float]:
    """A row's finite figures, without its step; a switch as 0 or 1."""
    numbers = {name: float(value) for name, value in row.items() if name != "step" and value is not None}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def follow(tracker: Tracker, lines: Lines, said: "queue.Queue[str | None]", say: TextIO) -> None:
    """Pass rows on until the input has ended. `said`: lines of the input, then None."""
    ended, sent = False, tracker.last_step
    while not ended:
        try:
            word = said.get(timeout=POLL_SECONDS)
        except queue.Empty:
            rows = list(lines.new())
        else:
            ended = word is None
            rows = (
                list(lines.new()) if word is None else list(lines.unseen(_table(json.loads(word)["table"])))
            )
        for first in range(0, len(rows), ROWS_AT_ONCE):
            for row in rows[first : first + ROWS_AT_ONCE]:
                tracker.log(row["step"], figures_of(row))
                sent = row["step"]
            tracker.flush()
            _tell(say, step=sent)
    tracker.close()
    _tell(say, step=sent, closed=True)


def _table(path: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def _tell(say: TextIO, **what: Any) -> None:
    say.write(json.dumps(what) + "\n")
    say.flush()


def _listen(said: "queue.Queue[str | None]") -> None:
    for line in sys.stdin:
        said.put(line)
    said.put(None)


def main() -> None:
    os.nice(19)  # the training comes first
    say = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the tracker's library prints
    job = TrackingJob.model_validate_json(sys.stdin.readline())
    said = queue.Queue[str | None]()
    threading.Thread(target=_listen, args=(said,), daemon=True).start()
    try:
        tracker = TRACKERS[job.tracker](job)
        follow(tracker, Lines(job.lines, tracker.last_step), said, say)
    except Exception as error:
        _tell(say, error=type(error).__name__)  # its words may hold a secret
        raise


if __name__ == "__main__":
    main()
