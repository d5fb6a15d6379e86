"""Atomic file replacement: a reader, and whoever comes after a crash or a power cut, finds the old content or the new."""

import errno
import os
from pathlib import Path

TEMPORARY_FILES = ".*.tmp"  # a glob pattern: what a killed writer leaves beside the file that it was to replace


def write_whole(path: Path, content: bytes) -> None:
    """Replace the file at `path`. Its bytes are on the disk before it gets its name, and the name is when this returns.

    Several processes may write the same file at once: the last one counts. Raises OSError; the old file then stays.
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
