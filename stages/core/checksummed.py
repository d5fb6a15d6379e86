"""A record and its seal: `record.json`, and beside it `record.sha256` in the form that `sha256sum -c` reads.

The seal is there because a record with a flipped digit is still sound JSON.
"""

import hashlib
from pathlib import Path

from stages.core.whole_files import write_whole

_READS = 3


def write_checksummed(path: Path, content: bytes) -> None:
    """Replace the record and its seal.

    A crash or a power cut leaves the old record or the new one, soundly sealed.

    While the record is replaced, the seal has a line for each of the two. One process at a time may write a
    record.
    """
    seal_path, seal = path.with_suffix(".sha256"), _seal_line(path, content)
    try:
        before = _seal_line(path, read_checksummed(path))
    except (OSError, ValueError):  # there is none, or it is damaged
        before = ""
    write_whole(seal_path, (seal + before).encode())
    write_whole(path, content)
    if before:
        write_whole(seal_path, seal.encode())


def read_checksummed(path: Path) -> bytes:
    """The record's bytes.

    Raises FileNotFoundError if it or its seal is missing, ValueError if the two disagree.
    """
    for _ in range(_READS):  # both may be replaced between the two reads
        content = path.read_bytes()
        seal = path.with_suffix(".sha256").read_text(encoding="utf-8", errors="replace")
        if hashlib.sha256(content).hexdigest() in {line.split(" ")[0] for line in seal.splitlines()}:
            return content
    raise ValueError(f"its sha256 is not the one beside it in {path.with_suffix('.sha256').name}")


def _seal_line(path: Path, content: bytes) -> str:
    return f"{hashlib.sha256(content).hexdigest()}  {path.name}\n"
