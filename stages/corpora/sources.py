"""Checks of the user's files: their sha256 for the manifest, and no change while they are read."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import sentencepiece

from schemas.errors import SpecError, StageError
from schemas.files import SourceFile
from stages.core.bits_per_byte import bos_problem
from stages.corpora.contents import refuse_special
from stages.store.hashing import FileHashes

MAX_VOCAB_SIZE = 65_536

OnRead = Callable[[int], None]

# Hashing so little takes less time than looking it up.
_SMALL_BYTES = 4_000_000
_READ_ANEW = FileHashes(None)


def ignore_read(num_bytes: int) -> None:
    """Progress callback for callers that show no progress."""


def source_file(path: str | Path, hashes: FileHashes, setting: str) -> SourceFile:
    """The file's size and sha256. Raises SpecError, naming `setting`, if it cannot be read."""
    try:
        full = Path(path).expanduser().absolute()
        refuse_special(full, f"{setting} = {path}")
        size = full.stat().st_size
        return SourceFile(path=str(full), num_bytes=size, sha256=_hashes_for(size, hashes).sha256(full))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SpecError(f"{setting} = {path}: there is no such file. Give the path of a file") from error
    except OSError as error:
        raise SpecError(
            f"{setting} = {path}: cannot be read ({error.strerror or error}). Check its permissions"
        ) from error
    except (ValueError, RuntimeError) as error:  # a NUL character; a home folder that is not known
        raise SpecError(f"{setting} = {path!r}: is no path ({error}). Give the path of a file") from error


@contextmanager
def unchanged(file: SourceFile, hashes: FileHashes) -> Iterator[Path]:
    """Path of a file that is as in the manifest, before and after the block reads it; raises StageError
    otherwise.
    """
    path = Path(file.path)
    problem = _hashes_for(file.num_bytes, hashes).problem_with(path, file.num_bytes, file.sha256)
    if problem is not None:
        raise StageError(
            f"the corpus changed since it was hashed: {problem}. Run again to use it as it is now"
        )
    before = _stamp(path)
    try:
        yield path
    except (SpecError, OSError) as error:
        # What is wrong with a file may be that it is half written.
        _refuse_changed(path, before, error)
        raise
    _refuse_changed(path, before)


def ready_made_tokenizer(path: Path, setting: str) -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece model whose ids fit in a shard and whose BOS is the one that models expect.

    Raises SpecError, naming `setting`, for any other file.
    """
    try:
        tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise SpecError(
            f"{setting} = {path}: is not a SentencePiece model ({error}). Give the .model file of one"
        ) from error
    if (size := tokenizer.vocab_size()) > MAX_VOCAB_SIZE:
        raise SpecError(
            f"{setting} = {path}: has {size:,} pieces, the ids of a shard fit {MAX_VOCAB_SIZE:,}. "
            "Give a smaller model"
        )
    if problem := bos_problem(tokenizer):
        raise SpecError(f"{setting} = {path}: {problem}")
    return tokenizer


def _hashes_for(num_bytes: int, hashes: FileHashes) -> FileHashes:
    return _READ_ANEW if num_bytes <= _SMALL_BYTES else hashes


def _refuse_changed(path: Path, before: tuple[int, int, int] | None, cause: Exception | None = None) -> None:
    now = _stamp(path)
    if now != before:
        what = "was removed" if now is None else "was written to"
        raise StageError(
            f"the corpus changed while it was read: {path} {what}. Run again once nothing writes to it"
        ) from cause


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino
