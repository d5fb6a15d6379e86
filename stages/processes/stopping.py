"""Cancellation of work in threads: a signal reaches only the main thread, which ends the children of the
others.
"""

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from functools import partial
from typing import TypeVar

from schemas.errors import StageError
from stages.processes.process_tree import end_trees

GRACE_SECONDS = 10.0
T = TypeVar("T")


class Stopping:
    """Child processes that threads wait for, and whether a stop was requested.

    Work that is split over threads shares one through its context.
    """

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._lock = threading.Lock()
        self._children = set[subprocess.Popen]()

    def wrap(self, work: Callable[[], T]) -> Callable[[], T]:
        """A callable that runs `work` in another thread, in a copy of this context."""
        context = copy_context()
        context.run(stopping.set, self)
        return partial(context.run, work)

    @contextmanager
    def track(self, child: subprocess.Popen) -> Iterator[None]:
        """Within the block, `stop_all` ends `child`.

        Raises StageError after a stop; the caller then ends `child`.
        """
        with self._lock:
            self._children.add(child)
        try:
            self.check()
            yield
        finally:
            with self._lock:
                self._children.discard(child)

    def stop_all(self) -> None:
        """End every child and what it started; from now on `check` raises.

        Returns once they are gone.
        """
        with self._lock:
            self._asked.set()
            children = list(self._children)
        end_trees(children, GRACE_SECONDS)

    def check(self) -> None:
        """Raise StageError once a stop was requested. It is not retried."""
        if self._asked.is_set():
            raise StageError("stopped because its run was stopped; start the run again to resume")


stopping: ContextVar[Stopping] = ContextVar("stopping", default=Stopping())  # noqa: B039  (nobody stops the default one)
