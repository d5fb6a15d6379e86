"""Locks between processes: a flock on a file with the process id of its holder.

The kernel drops the lock when its holder dies, even by SIGKILL. The library filelock empties the file when it
asks for the lock, so it could not say who is waited for.
"""

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from stages.processes.stopping import stopping

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2


def try_lock(path: Path) -> IO[str] | None:
    """The file at `path` with an exclusive lock, which ends when the file is closed; None if another has
    the lock.

    A child that inherits the descriptor holds the lock too, and for as long as it runs.
    """
    while True:
        file = path.open("a+")
        if not _lock_now(file, fcntl.LOCK_EX):
            file.close()
            return None
        if _is_at(file, path):
            _sign(file)
            return file
        file.close()  # its last holder removed it after we opened it: what is there now is another one


@contextmanager
def waiting_lock(path: Path, who_waits: str, why: str) -> Iterator[None]:
    """Hold the lock at `path`, once it is free; its file is removed afterwards.

    Logs once who is waited for: "<who_waits>: waiting for process 17, <why>". Raises StageError once a stop
    is asked for.
    """
    told = False
    while (file := try_lock(path)) is None:
        stopping.get().check()
        if not told:
            log.info("%s: waiting for process %s, %s", who_waits, holder(path), why)
            told = True
        time.sleep(_POLL_SECONDS)
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def wait_for_shared(file: IO[str], who_waits: str, why: str) -> None:
    """Take a shared lock on an open file once nobody has it alone. Logs and raises as `waiting_lock` does."""
    told = False
    while not _lock_now(file, fcntl.LOCK_SH):
        stopping.get().check()
        if not told:
            log.info("%s: waiting for process %s, %s", who_waits, holder(Path(file.name)), why)
            told = True
        time.sleep(_POLL_SECONDS)


@contextmanager
def alone_with(file: IO[str], share_again: Callable[[], None]) -> Iterator[bool]:
    """Whether no other process shares the lock on an open file; for the block, none can then share it.

    `file` is one that shares its lock, and does so again afterwards, by `share_again`.
    """
    if not _lock_now(file, fcntl.LOCK_EX):
        share_again()  # a conversion that fails may drop the lock
        yield False
        return
    try:
        _sign(file)
        yield True
    finally:
        file.truncate(0)
        share_again()


def is_free(path: Path) -> bool:
    """Whether nobody has the lock at `path` just now. Raises FileNotFoundError for a lock that is gone."""
    with path.open() as file:
        return _lock_now(file, fcntl.LOCK_SH)


def holder(path: Path) -> str:
    """The process id that the last holder left in the file; "(unknown)" if there is none."""
    try:
        return path.read_text(encoding="utf-8").strip() or "(unknown)"
    except FileNotFoundError:
        return "(unknown)"


def _lock_now(file: IO[str], kind: int) -> bool:
    """Whether we have the lock of this kind now; nothing waits."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sign(file: IO[str]) -> None:
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
