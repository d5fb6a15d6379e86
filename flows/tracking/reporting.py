"""A run's side of `--report-to`: starts the process beside the run and tells it when the training has ended.

The training's file of metrics is what both share. So the run hands over no step: a tracker that hangs,
refuses or is cut off can neither hold the training up nor lose a step of it.
"""

import json
import logging
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from flows.tracking.job import TrackingJob
from flows.tracking.trackers import way_to_look
from schemas.extras import require_package
from schemas.runtime import TrackerName
from stages.processes.launch import guarded
from stages.processes.surroundings import for_children, importing_ours

log = logging.getLogger(__name__)

WAIT_SECONDS = 30.0
"""For a tracker that takes no further step when the run has ended; one that does is waited for."""


def check_tracker(tracker: TrackerName | None) -> None:
    """Raise SpecError, with the install command, where the tracker's package is missing."""
    if tracker is not None:
        require_package(tracker, f"report_to = {tracker}")


class Reporting:
    """The process beside one run. None of its methods raises because of the tracker."""

    def __init__(self, job: TrackingJob, command: Sequence[str] | None = None) -> None:
        self._job, self._sent, self._closed, self._told = job, 0, False, False
        job.folder.mkdir(parents=True, exist_ok=True)
        with (job.folder / "messages.log").open("ab") as messages:
            self._process = subprocess.Popen(
                command or [*guarded("SIGKILL"), "-m", "flows.tracking.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                text=True,
                encoding="utf-8",
                cwd=job.folder,
                env=importing_ours(for_children(os.environ)),
                start_new_session=True,  # Ctrl-C is for the run, which then ends this one
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._say(job.model_dump_json())

    def trained(self, table: Path) -> None:
        """The training has ended; `table` has every step."""
        self._say(json.dumps({"table": str(table)}))

    def end(self, seconds: float = WAIT_SECONDS) -> None:
        """Wait while the tracker takes what it has not taken yet; end its process after so many seconds in
        which it took nothing.
        """
        try:
            self._process.stdin.close()  # type: ignore[union-attr]  # it is a pipe
        except OSError:
            log.debug("the process of %s had ended", self._job.tracker)
        if self._process.poll() is None:
            log.info("waiting for %s, at most %.0f s without a further step", self._job.tracker, seconds)
        before = -1
        while self._process.poll() is None and before != self._sent:
            before = self._sent
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        self._process.kill()
        self._process.wait()
        self._reader.join()
        if self._closed:
            look = way_to_look(self._job.tracker, self._job.folder)
            log.info("%s has the steps of %s: %s", self._job.tracker, self._job.name, look)
        else:
            self._warn(f"took nothing for {seconds:.0f} s after the run")

    def _say(self, line: str) -> None:
        """Write a line, short enough for the pipe to take it whether or not anybody reads."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(line + "\n")
            stdin.flush()
        except OSError:
            self._warn("has ended before the run")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            self._sent = said.get("step", self._sent)
            self._closed = self._closed or said.get("closed", False)
            if "error" in said:
                self._warn(f"failed ({said['error']})")

    def _warn(self, what: str) -> None:
        if self._told:
            return
        self._told = True
        log.warning(
            "%s %s; it has the steps up to %d. The run needs nothing of it, and the same command sends the "
            "rest later. What it said: %s",
            self._job.tracker,
            what,
            self._sent,
            self._job.folder / "messages.log",
        )


@contextmanager
def reporting_to(job: TrackingJob | None) -> Iterator[Reporting | None]:
    """The process beside a run for the time of the block; None without a tracker."""
    if job is None:
        yield None
        return
    reporting = Reporting(job)
    try:
        yield reporting
    except BaseException:
        reporting.end(WAIT_SECONDS / 10)
        raise
    reporting.end()
