"""What a stage may touch: verified inputs, one folder for its outputs, and a way to say how far it is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from schemas.files import FileRef, SourceFile
from schemas.runtime import Progress, RunOptions
from stages.store.hashing import FileHashes


class DamagedFileError(OSError):
    """A file is missing or is not what its reference says. The stage that made it has to run again."""


def no_progress(done: float, total: float, unit: str) -> None:
    """For callers that show nothing."""


@dataclass(frozen=True)
class Workspace:
    """Handed to every stage function by the runner.

    `out_dir` is built here and appears in the store, complete, as `published_as` once the stage returned.
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
        """Path of an input file whose size and sha256 are as recorded. Raises DamagedFileError."""
        path = self.root / ref.path if isinstance(ref, FileRef) else Path(ref.path)
        if problem := self.hashes.problem_with(path, ref.num_bytes, ref.sha256):
            if self.fetch is None or isinstance(ref, SourceFile):
                raise DamagedFileError(problem)
            return self.fetch(ref)
        return path

    def ref(self, path: Path) -> FileRef:
        """Reference to a finished file under `out_dir`, as it will lie in the store."""
        inside = path.relative_to(self.out_dir).as_posix()
        return FileRef(
            path=f"{self.published_as}/{inside}",
            num_bytes=path.stat().st_size,
            sha256=self.hashes.sha256(path),
        )

    def report_progress(self, done: float, total: float, unit: str) -> None:
        self.progress(done, total, unit)
