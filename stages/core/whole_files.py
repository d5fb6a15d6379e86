"""Atomic file replacement: readers find the old content or the new, also after a crash or a power cut."""

import errno
import os
from pathlib import Path

TEMPORARY_FILES = ".*.tmp"  # a glob pattern: what a killed writer leaves beside its target


def write_whole(path: Path, content: bytes) -> None:
    """Replace the file at `path`.

    Its bytes reach the disk before its name does, and both before this returns.

    Several processes may write one file at once: the last one counts. Raises OSError; the old file then
    stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_to_disk(path.parent)


def flush_to_disk(path: Path) -> None:
    """Have a file's bytes or a folder's names survive a power cut. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot flush a folder
            raise
    finally:
        os.close(descriptor)
