"""The two permanent kinds of error.

Everything else that a stage raises counts as transient and is retried, also `StorageError`.
"""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STORAGE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


class FairwayError(Exception):
    """Base of the errors that a retry cannot mend."""


class SpecError(FairwayError):
    """The user's input is wrong.

    The message names the field, the value and the remedy; raised before any work.
    """


class StageError(FairwayError):
    """A stage's own finding: a diverged loss, a bad shard, a submission over the limit.

    Retrying gives the same.
    """


class StoppedError(StageError):
    """A rule of the user's ended the training: the score of held-out text was too bad."""


class StorageError(OSError):
    """The store cannot be written: no space, too large a file, no permission.

    Worth another try, once there is room.
    """


def first_line(error: Exception | str) -> str:
    """The first line of a message; empty where there is none."""
    return str(error).partition("\n")[0]


def on_one_line(error: Exception | str, limit: int = 300) -> str:
    """A message with each run of spaces and line ends as one space, its first `limit` characters."""
    return " ".join(str(error).split())[:limit]


@contextmanager
def interrupts_kept() -> Iterator[None]:
    """Within the block a Ctrl-C stays a KeyboardInterrupt.

    During the import of a C++ module it becomes an ImportError of pybind11, which would be retried.
    """
    try:
        yield
    except ImportError as error:
        if isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise


@contextmanager
def clear_storage_errors(folder: Path) -> Iterator[None]:
    """Say an error of the disk that holds `folder` as one: what happened, how much room there is, what to
    do.
    """
    try:
        yield
    except OSError as error:
        elsewhere = (
            isinstance(error.filename, str)
            and not Path(error.filename).is_relative_to(folder)
            and error.errno == errno.EACCES
        )
        if error.errno not in _STORAGE_ERRNOS or elsewhere or isinstance(error, StorageError):
            raise
        free = shutil.disk_usage(folder).free
        raise StorageError(
            f"store: cannot write {error.filename or folder} ({error.strerror}; {free:,} bytes of space left "
            "there). Free some space (`fairway gc` lists what no run needs), or give another store by "
            "--store or FAIRWAY_STORE; finished stages are kept"
        ) from error
