"""Reading what a stranger wrote: bounded, typed, and never executed."""

import base64
import json
import lzma
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from schemas.errors import SpecError

TEXT_LIMIT_BYTES = 64 * 2**20
SOURCE_LIMIT_BYTES = 16 * 2**20
MAX_FILES = 10_000
LINE_CHARACTERS = 4_000  # longer lines are data; a search over them could take for ever
_UNPACKING_BYTES = 256 * 2**20


class UnreadableError(ValueError):
    """A file that is missing, no plain file, too large, or not what it should be. The message says which."""


def list_files(folder: Path) -> dict[str, os.stat_result]:
    """Name relative to `folder` -> what it is, of everything below it but folders; links are not followed.

    Raises SpecError when it is no folder that can be read, UnreadableError for more than 10,000 entries.
    """
    if not folder.is_dir():
        raise SpecError(f"FOLDER = {folder}: no such folder")
    found: dict[str, os.stat_result] = {}
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
                    else:
                        found[Path(entry.path).relative_to(folder).as_posix()] = entry.stat(follow_symlinks=False)
                    if len(found) + len(waiting) > MAX_FILES:
                        raise UnreadableError(f"{folder} holds more than {MAX_FILES:,} files")
        except OSError as error:
            raise SpecError(f"FOLDER = {folder}: {error.filename or place} cannot be read ({error.strerror})") from error
    return dict(sorted(found.items()))


def read_bytes(path: Path, limit: int = TEXT_LIMIT_BYTES) -> bytes:
    """The content of a plain file of at most `limit` bytes; no link, pipe or device is opened. Raises UnreadableError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise UnreadableError(f"{path.name} cannot be read ({error.strerror}{'; it is a link' if path.is_symlink() else ''})") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnreadableError(f"{path.name} is no plain file")
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UnreadableError(f"{path.name} has more than {limit:,} bytes")
    return content


def read_text(path: Path, limit: int = TEXT_LIMIT_BYTES) -> str:
    """The same as UTF-8. Raises UnreadableError."""
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"{path.name} is no UTF-8 text ({error.reason} at byte {error.start:,})") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object without duplicate keys, NaN or infinities. Raises UnreadableError."""
    try:
        value = json.loads(read_text(path), object_pairs_hook=_unique, parse_constant=_refuse)
    except UnreadableError:
        raise
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"{path.name} is no JSON that is taken here: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise UnreadableError(f"{path.name} holds a {type(value).__name__}, not an object")
    return value


def short_lines(text: str) -> Iterator[str]:
    """The lines of a text that a pattern may be tried on."""
    return (line for line in text.splitlines() if len(line) <= LINE_CHARACTERS)


def decompressed(text: bytes) -> bytes | None:
    """What a compressed program unpacks to, tried in the ways that submissions use; None if it is none of them."""
    for decode in (base64.b85decode, base64.b64decode, base64.a85decode, bytes):
        try:
            packed = decode(text)
        except ValueError:
            continue
        for expand in (lambda: lzma.LZMADecompressor(memlimit=_UNPACKING_BYTES), zlib.decompressobj):
            try:
                expander = expand()
                content = expander.decompress(packed, SOURCE_LIMIT_BYTES)
            except (lzma.LZMAError, zlib.error, EOFError):
                continue
            if content and expander.eof:
                return content
    return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number here")
