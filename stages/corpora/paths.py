"""File search by paths and patterns: each real file once, in an order that no spelling changes."""

import errno
import fnmatch
import glob
import logging
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from schemas.errors import SpecError

log = logging.getLogger(__name__)

_ANY_FOLDERS = "**"
_APPLE_DOUBLE = "._"  # what macOS keeps beside a file on disks of other systems
_LONG_NAME = 300
_REMEDIES = {
    errno.ELOOP: "Its links lead in a circle: remove one of them",
    errno.ENAMETOOLONG: "Give a shorter path, for example a relative one",
    errno.EACCES: "Change the permissions there, or give a pattern that stays outside",
}


@dataclass(frozen=True)
class Found:
    """Absolute paths in the order of reading, and counts of what was skipped: hidden files and folders, and
    further names of the same files.
    """

    paths: tuple[str, ...]
    num_hidden: int
    num_hidden_folders: int
    num_repeated: int


def find_files(patterns: Iterable[str]) -> Found:
    """Every file that `patterns` name, sorted by path with resolved folders.

    An existing path takes precedence over a pattern. `*` and `**` skip names that begin with a dot. A file
    with several names (links, `a/../a`) counts once, under its own name rather than that of a link. Raises
    SpecError, naming the pattern, if it matches no file, is a folder, or leads to an unreadable place.
    """
    search = _Search()
    for pattern in patterns:
        with _clear_errors(pattern):
            search.add(pattern)
    return search.found()


@contextmanager
def _clear_errors(pattern: str) -> Iterator[None]:
    """Turn errors of the file system into SpecError with the pattern that led there."""
    try:
        yield
    except OSError as error:
        where = (
            f" at {error.filename}"
            if isinstance(error.filename, str) and len(error.filename) < _LONG_NAME
            else ""
        )
        shown = pattern if len(pattern) < _LONG_NAME else pattern[:_LONG_NAME] + "…"
        remedy = _REMEDIES.get(error.errno or 0, "Give a path that can be read")
        raise SpecError(
            f"tokenize.corpus.paths = {shown}: cannot be read{where} ({error.strerror}). {remedy}"
        ) from error


@dataclass
class _Search:
    """Collects files, identified by device and inode."""

    _names: dict[object, set[str]] = field(default_factory=dict)
    _hidden: set[str] = field(default_factory=set)
    _hidden_folders: set[str] = field(default_factory=set)
    _real_folders: dict[str, str] = field(default_factory=dict)

    def add(self, pattern: str) -> None:
        try:
            full = Path(pattern).expanduser().absolute()
        except RuntimeError as error:
            raise SpecError(f"tokenize.corpus.paths = {pattern}: {error}. Give the path without ~") from error
        if "\0" in pattern:
            raise SpecError(
                f"tokenize.corpus.paths = {pattern!r}: has a NUL character, which no path can hold. Remove it"
            )
        if (status := _status(str(full))) is not None:
            self._add_plain(pattern, full, status)
            return
        if os.path.islink(full):
            raise SpecError(
                f"tokenize.corpus.paths = {pattern}: is a link to {os.readlink(full)}, which is not there. "
                "Repair or remove the link"
            )
        num_before, num_hidden = len(self._names), len(self._hidden)
        matches = list(self._matches(str(full))) if glob.has_magic(str(full)) else []
        for path in matches:
            self._add_file(path)
        if not matches and len(self._names) == num_before:
            raise SpecError(_no_match(pattern, full, len(self._hidden) - num_hidden))

    def found(self) -> Found:
        chosen = [min(names, key=lambda name: (os.path.islink(name), name)) for names in self._names.values()]
        num_names = sum(len(names) for names in self._names.values())
        return Found(
            tuple(sorted(chosen)), len(self._hidden), len(self._hidden_folders), num_names - len(chosen)
        )

    def _add_plain(self, pattern: str, full: Path, status: os.stat_result) -> None:
        if stat.S_ISDIR(status.st_mode):
            example = Path(pattern) / "**" / "*.txt"
            raise SpecError(
                f"tokenize.corpus.paths = {pattern}: is a folder. Give a glob of its files, for example "
                f"{example}"
            )
        if glob.has_magic(pattern):
            log.info(
                "tokenize.corpus.paths: %s is the name of a file, so it is not used as a pattern", pattern
            )
        self._add_file(str(full))

    def _add_file(self, path: str) -> None:
        folder, name = os.path.split(path)
        if (real := self._real_folders.get(folder)) is None:
            real = self._real_folders[folder] = os.path.realpath(folder)
        full = os.path.join(real, name)
        try:
            full.encode()
        except UnicodeEncodeError as error:
            raise SpecError(
                f"tokenize.corpus.paths: the name {full!a} is not valid UTF-8. Rename the file or its folder"
            ) from error
        status = _status(full)
        if status is None:
            raise SpecError(f"tokenize.corpus.paths: {full} is a link to a missing file. Repair or remove it")
        # Some network disks give no inodes.
        what = (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(full)
        self._names.setdefault(what, set()).add(full)

    def _matches(self, pattern: str) -> Iterator[str]:
        """Paths that match. A folder is searched once for each part of the pattern, so loops of links end."""
        parts = Path(pattern).parts
        waiting, seen = [(parts[0], 1)], set()
        while waiting:
            folder, index = waiting.pop()
            status = os.stat(folder)
            if (state := (status.st_dev, status.st_ino, index)) in seen:
                continue
            seen.add(state)
            part, is_last = parts[index], index == len(parts) - 1
            if part == _ANY_FOLDERS:
                # At the end it means every file below.
                if is_last:
                    yield from self._files_of(folder, "*")
                else:
                    waiting.append((folder, index + 1))
                waiting += [(path, index) for path in self._subfolders(folder, "*")]
            elif _is_plain(folder, part):
                path = os.path.join(folder, part)
                if not is_last:
                    waiting += [(path, index + 1)] if os.path.isdir(path) else []
                elif os.path.lexists(path) and not os.path.isdir(path):
                    yield path
            elif is_last:
                yield from self._files_of(folder, part)
            else:
                waiting += [(path, index + 1) for path in self._subfolders(folder, part)]

    def _subfolders(self, folder: str, part: str) -> Iterator[str]:
        with os.scandir(folder) as entries:
            for entry in entries:
                if fnmatch.fnmatchcase(entry.name, part) and _is_folder(entry):
                    if _is_hidden(entry.name, part):
                        self._hidden_folders.add(os.path.realpath(entry.path))
                    else:
                        yield entry.path

    def _files_of(self, folder: str, part: str) -> Iterator[str]:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not fnmatch.fnmatchcase(entry.name, part) or _is_folder(entry):
                    continue
                if _is_hidden(entry.name, part):
                    self._hidden.add(os.path.realpath(entry.path))
                else:
                    yield entry.path


def _is_plain(folder: str, part: str) -> bool:
    """Whether a part of a pattern is a plain name: it has no wildcard, or only brackets and a file of exactly
    that name exists.
    """
    if not glob.has_magic(part):
        return True
    if "*" in part or "?" in part or not os.path.lexists(os.path.join(folder, part)):
        return False
    log.info(
        "tokenize.corpus.paths: %s is a name in %s, so its brackets are not used as a pattern",
        part,
        folder,
    )
    return True


def _is_hidden(name: str, part: str) -> bool:
    return name.startswith(_APPLE_DOUBLE) > part.startswith(_APPLE_DOUBLE) or name.startswith(
        "."
    ) > part.startswith(".")


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; named where it is read
        return False


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _no_match(pattern: str, full: Path, num_hidden: int) -> str:
    hints = ""
    if num_hidden:
        hints += f"; {num_hidden} hidden files were left out (a pattern that begins with a dot takes them)"
    if "[" in pattern:
        hints += "; [abc] stands for one of these characters, a bracket itself is written [[]"
    return (
        f"tokenize.corpus.paths = {pattern}: matches no file (looked for {full}{hints}). Give a file or a "
        "glob that matches"
    )
