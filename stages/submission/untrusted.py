"""Readers for untrusted files: bounded, typed, and without execution."""

import json
import os
import stat
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

from schemas.errors import SpecError
from schemas.printable import one_line

TEXT_LIMIT_BYTES = 64 * 2**20
SOURCE_LIMIT_BYTES = 16 * 2**20
MAX_FILES = 10_000
LINE_CHARACTERS = 4_000  # longer lines are data; a search over them could take for ever


class UnreadableError(ValueError):
    """A file that is missing, not a plain file, too large, or of the wrong format. The message says which."""


def list_files(folder: Path) -> dict[str, os.stat_result]:
    """Status of everything below `folder` but folders, by relative name. Links are not followed.

    Raises SpecError if it is not a readable folder, UnreadableError for more than 10,000 entries.
    """
    if not folder.is_dir():
        raise SpecError(f"FOLDER = {one_line(str(folder))}: no such folder")
    files: dict[str, os.stat_result] = {}
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
                    else:
                        files[Path(entry.path).relative_to(folder).as_posix()] = entry.stat(
                            follow_symlinks=False
                        )
                    if len(files) + len(waiting) > MAX_FILES:
                        raise UnreadableError(f"the folder holds more than {MAX_FILES:,} files")
        except OSError as error:
            shown = one_line(f"{folder}: {error.filename or place}")
            raise SpecError(f"FOLDER = {shown} cannot be read ({error.strerror})") from error
    return dict(sorted(files.items()))


def read_bytes(path: Path, limit: int = TEXT_LIMIT_BYTES) -> bytes:
    """The content of a plain file of at most `limit` bytes. Links, pipes and devices are not opened.

    Raises UnreadableError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        hint = "; it is a link" if path.is_symlink() else ""
        raise UnreadableError(f"{path.name} cannot be read ({error.strerror}{hint})") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnreadableError(f"{path.name} is no plain file")
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UnreadableError(f"{path.name} has more than {limit:,} bytes")
    return content


def read_text(path: Path, limit: int = TEXT_LIMIT_BYTES) -> str:
    """The content of a UTF-8 file of at most `limit` bytes. Raises UnreadableError."""
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableError(
            f"{path.name} is no UTF-8 text ({error.reason} at byte {error.start:,})"
        ) from error


def read_json_object(path: Path, exact: bool = False) -> dict[str, Any]:
    """A JSON object without duplicate keys, NaN or infinities. Raises UnreadableError.

    `exact`: numbers with a point are Decimals, which keep the digits as they were written.
    """
    number = Decimal if exact else float
    try:
        value = json.loads(
            read_text(path), object_pairs_hook=_unique, parse_constant=_refuse, parse_float=number
        )
    except UnreadableError:
        raise
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise UnreadableError(f"{path.name} is no valid JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise UnreadableError(f"{path.name} holds a {type(value).__name__}, not an object")
    return value


def short_lines(text: str) -> Iterator[str]:
    """The lines of a text that are short enough for a pattern search."""
    return (line for line in text.splitlines() if len(line) <= LINE_CHARACTERS)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, item in pairs:
        if name in value:
            raise ValueError(f"the key {name!r} occurs twice")
        value[name] = item
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not allowed as a number")
