"""Output of a child process, read line by line until that process ends, even if another holds the pipe."""

import codecs
import contextlib
import io
import math
import os
import selectors
import subprocess
import time
from collections.abc import Iterator

from stages.processes.stopping import stopping

_PIPE_BYTES = 64 * 1024  # what a pipe of Linux holds at most
_POLL_SECONDS = 0.2


class ChildOutput:
    """Lines of a child that was started with `stdout=PIPE, bufsize=0`: unbuffered bytes.

    A process that the child started shares this output, and may keep it open after the child's end. So the
    reader does not wait for the end of the output. It uses no thread, because a pipe cannot be closed while a
    thread waits for it.
    """

    def __init__(self, process: subprocess.Popen) -> None:
        assert process.stdout is not None
        self._process, self._pipe = process, process.stdout.fileno()
        self._decoder = io.IncrementalNewlineDecoder(
            codecs.getincrementaldecoder("utf-8")("replace"), translate=True
        )
        self._rest = ""
        self.is_closed = False  # by everyone who could write to it

    def lines(self, timeout: float | None) -> Iterator[str]:
        """Yield each line without its end, until the child has ended.

        Raises TimeoutError if it runs for more than `timeout` seconds, StageError once a stop was requested.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while self._process.poll() is None:
            stopping.get().check()
            if time.monotonic() >= deadline:
                raise TimeoutError(f"the stage's process ran past {timeout} s (stage_timeout_seconds)")
            yield from self._read(_POLL_SECONDS)
        # All that the child wrote is in the pipe now and fits one read; the second meets the end, or others'
        # lines.
        yield from self._read(0)
        yield from self._read(0)
        if self._rest:
            yield self._rest

    def _read(self, seconds: float) -> list[str]:
        """The complete lines so far, after waiting at most so many seconds for the first byte."""
        if self.is_closed:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
            return []
        with selectors.DefaultSelector() as selector:
            selector.register(self._pipe, selectors.EVENT_READ)
            if not selector.select(seconds):
                return []
        content = os.read(self._pipe, _PIPE_BYTES)
        self.is_closed = not content
        *lines, self._rest = (self._rest + self._decoder.decode(content, final=not content)).split("\n")
        return lines
