"""File access of a stage: verified inputs, one output folder, and progress reports."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from schemas.files import FileRef, SourceFile
from schemas.runtime import Progress, RunOptions
from stages.store.hashing import FileHashes


class DamagedFileError(OSError):
    """A file is missing or is not what its reference says. The stage that made it has to run again."""


def no_progress(done: float, total: float, unit: str) -> None:
    """Progress callback for callers that show no progress."""


@dataclass(frozen=True)
class Workspace:
    """The runner gives one to every stage function.

    `out_dir` is built here and appears in the store, complete, as `published_as` once the stage has returned.
    """

    root: Path
    out_dir: Path
    published_as: PurePosixPath
    runtime: RunOptions
    hashes: FileHashes
    progress: Progress = field(default=no_progress)
    fetch: Callable[[FileRef], Path] | None = None
    """Brings a file that is not sound here, and raises DamagedFileError if it cannot."""

    def read(self, ref: FileRef | SourceFile) -> Path:
        """Path of an input file with the recorded size and sha256. Raises DamagedFileError otherwise."""
        path = self.root / ref.path if isinstance(ref, FileRef) else Path(ref.path)
        if problem := self.hashes.problem_with(path, ref.num_bytes, ref.sha256):
            if self.fetch is None or isinstance(ref, SourceFile):
                raise DamagedFileError(problem)
            return self.fetch(ref)
        return path

    def ref(self, path: Path) -> FileRef:
        """Reference to a finished file under `out_dir`, with its later place in the store."""
        inside = path.relative_to(self.out_dir).as_posix()
        return FileRef(
            path=f"{self.published_as}/{inside}",
            num_bytes=path.stat().st_size,
            sha256=self.hashes.sha256(path),
        )

    def report_progress(self, done: float, total: float, unit: str) -> None:
        self.progress(done, total, unit)
