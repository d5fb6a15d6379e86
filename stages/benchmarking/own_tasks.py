"""The folder of the user's own tasks: its files by name and content."""

import os
from collections.abc import Iterator
from pathlib import Path

from schemas.benchmark import OwnTask, OwnTasks
from schemas.errors import SpecError
from stages.corpora.sources import source_file
from stages.store.hashing import FileHashes

MOST_FILES = 1_000
_SKIPPED = {"__pycache__"}


def find_own_tasks(folder: Path | None, hashes: FileHashes, setting: str) -> OwnTasks:
    """The files below `folder`; none for None. Hidden files and those that Python keeps do not count.

    Raises SpecError, naming `setting`, for a folder that is none, has no task or too many files.
    """
    if folder is None:
        return OwnTasks()
    place = folder.expanduser().resolve()
    if not place.is_dir():
        raise SpecError(
            f"{setting} = {folder}: no such folder. Give the folder with the YAML files of your tasks"
        )
    paths = []
    for path in _files(place):
        paths.append(path)
        if len(paths) > MOST_FILES:
            raise SpecError(
                f"{setting} = {folder}: has more than {MOST_FILES:,} files. Give a folder with nothing but "
                "your tasks and their data"
            )
    if not any(path.suffix == ".yaml" for path in paths):
        raise SpecError(
            f"{setting} = {folder}: has no *.yaml file, and tasks are such files. Give another folder"
        )
    files = (
        OwnTask(name=path.relative_to(place).as_posix(), source=source_file(path, hashes, setting))
        for path in paths
    )
    return OwnTasks(folder=str(place), files=tuple(files))


def _files(place: Path) -> Iterator[Path]:
    """Sorted, folder by folder."""
    for folder, folders, files in os.walk(place):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED and not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))
