"""A record and its seal: `record.json`, and beside it `record.sha256` in the form that `sha256sum -c` reads.

The seal is there because a record with a flipped digit is still sound JSON.
"""

import hashlib
import os
from pathlib import Path


def write_sealed(path: Path, content: bytes) -> None:
    """Write the record, whole or not at all, and its seal before it."""
    seal = f"{hashlib.sha256(content).hexdigest()}  {path.name}\n"
    path.with_suffix(".sha256").write_text(seal, encoding="utf-8")
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def read_sealed(path: Path) -> bytes:
    """The record's bytes. Raises FileNotFoundError if it or its seal is missing, ValueError if the two disagree."""
    content = path.read_bytes()
    seal = path.with_suffix(".sha256").read_text(encoding="utf-8", errors="replace")
    if hashlib.sha256(content).hexdigest() != seal.split(" ")[0]:
        raise ValueError(f"its sha256 is not the one beside it in {path.with_suffix('.sha256').name}")
    return content
