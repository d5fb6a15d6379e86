"""Content-addressed store: one folder a result, published whole by rename, verified at every read.

    <root>/stages/<stage>/<key>/record.json + .sha256 + files   finished results
    <root>/work/<stage>/<key>/       a result in the making; training resumes from its files
    <root>/locks/                    who makes what, and who uses the store
    <root>/hashes.sqlite             digests of files that were verified

An open Store marks the store as in use: housekeeping removes nothing while another process has one.
"""

import errno
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel

from schemas.errors import SpecError, on_one_line
from schemas.files import FileRef, SourceFile, StageRecord
from schemas.notes import RunNotes
from schemas.pipeline import PipelineReport
from schemas.runtime import RunOptions, remote_address
from schemas.seeds import Ledger
from schemas.stages import Stage
from stages.core.checksummed import read_checksummed, write_checksummed
from stages.core.whole_files import TEMPORARY_FILES, flush_to_disk
from stages.processes.locks import alone_with, wait_for_shared, waiting_lock
from stages.store.hashing import FileHashes
from stages.store.notes import Change, changing, save_notes
from stages.store.object_storage import without_obstore
from stages.store.workspace import DamagedFileError

if TYPE_CHECKING:
    from stages.store.remote import Remote

log = logging.getLogger(__name__)

RECORD_NAME = "record.json"
USERS_LOCK = "users.lock"
RECHECKS = "recheck"  # results that were computed again and differ
FETCHED = "fetched"  # beside the unfinished results: records on their way from a remote store
_KEY_CHARACTERS = 32
_SIGNS = (f"locks/{USERS_LOCK}", f"stages/*/*/{RECORD_NAME}", "runs/*/report.json")
"""Any of them shows that a folder is a store, whatever version made it."""
_OWN = (
    *("stages", "work", "locks", "runs", "hashes.sqlite*", "cache", "prefect", "ledgers", "sweeps"),
    *(RECHECKS, "comparisons", "frontiers", "huggingface", "submissions"),
)
_BESIDE = (".*", "lost+found", "logs", "*.log", "*.out", "*.err")
"""What may lie in a folder before a store is made there: what belongs to a disk, and logs."""


class Store:
    """A folder of finished results. Raises SpecError when the folder cannot be one."""

    def __init__(self, root: Path | str) -> None:
        self.root = _root_of(root)
        try:
            for name in ("stages", "work", "locks", "runs"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            self._users = (self.root / "locks" / USERS_LOCK).open("a")
        except OSError as error:
            raise SpecError(
                f"store = {self.root}: cannot be used as a store ({error}). Give a writable folder "
                "by --store or FAIRWAY_STORE"
            ) from error
        if not os.access(self.root / "work", os.W_OK):
            raise SpecError(
                f"store = {self.root}: is read-only. Give a writable folder by --store or FAIRWAY_STORE"
            )
        self.hashes = FileHashes(self.root / "hashes.sqlite")
        self._share()

    def close(self) -> None:
        """Give up the sign that the store is in use, as also the end of a `with` block or of the process
        does.
        """
        self._users.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether no other process has a Store on this folder; for the block none can be opened then."""
        with alone_with(self._users, self._share) as alone:
            yield alone

    def _share(self) -> None:
        wait_for_shared(
            self._users, f"store {self.root}", "which has it alone, to take away what no run needs"
        )

    @staticmethod
    def relative_folder(stage: Stage, key: str) -> PurePosixPath:
        return PurePosixPath("stages", stage.name, key[:_KEY_CHARACTERS])

    def folder(self, stage: Stage, key: str) -> Path:
        return self.root / self.relative_folder(stage, key)

    def work_folder(self, stage: Stage, key: str) -> Path:
        return self.root / "work" / stage.name / key[:_KEY_CHARACTERS]

    def find(self, stage: Stage, key: str) -> StageRecord | None:
        """The finished record of `key` with every file verified, or None.

        Damage is named in the log; a damaged result is never returned.
        """
        record = self.record(stage, key)
        for problem in self.problems(record.result) if record else ():
            log.warning("%s: %s: the stage runs again", stage.name, problem)
            return None
        return record

    def record(self, stage: Stage, key: str) -> StageRecord | None:
        """The verified record of `key`, or None; its files are not checked."""
        record_path = self.folder(stage, key) / RECORD_NAME
        try:
            return sound_record(stage, key, read_checksummed(record_path))
        except FileNotFoundError as error:
            if self.folder(stage, key).exists():
                log.warning("%s: %s is missing: the stage runs again", stage.name, error.filename)
            return None
        except (ValueError, OSError) as error:
            log.warning(
                "%s: record %s is damaged or of another version: the stage runs again (%s)",
                stage.name,
                record_path,
                on_one_line(error),
            )
            return None

    def problems(self, result: Any) -> Iterator[str]:
        """What is wrong with the files that `result` refers to, in words, lazily."""
        yield from filter(None, map(self.problem, file_refs(result)))

    def problem(self, ref: FileRef | SourceFile) -> str | None:
        """What is wrong with the file, in words; None if nothing is."""
        path = self.root / ref.path if isinstance(ref, FileRef) else Path(ref.path)
        return self.hashes.problem_with(path, ref.num_bytes, ref.sha256)

    def fetch(self, ref: FileRef) -> Path:
        """The sound file on this machine. Raises DamagedFileError."""
        if problem := self.problem(ref):
            raise DamagedFileError(problem)
        return self.root / ref.path

    def bring(self, value: Any) -> None:
        """Have the files that `value` refers to on this machine, where a local store has them anyway."""

    def runs_root(self) -> Path:
        """The folder with the runs and ledgers that count: `find_run` and `find_ledger` look there."""
        return self.root

    def share_report(self, report: PipelineReport) -> None:
        """Let other machines know of a run whose report is saved. A local store has none to tell."""

    def forget_report(self, run_id: str) -> None:
        """Have other machines forget a run, with its notes. A local store has none to tell."""

    def change_notes(self, run_id: str, change: Change) -> RunNotes:
        """Change the notes of a run; returns what they are now.

        Raises SpecError for notes that cannot be read, and what `change` raises.
        """
        with changing(self.root, run_id) as before:
            after = change(before)
            if after != before:
                save_notes(self.root, run_id, after)
        return after

    def share_ledger(self, ledger: Ledger) -> Ledger:
        """The ledger with what other machines added to it, known to them from now on."""
        return ledger

    @contextmanager
    def keeping_checkpoints(self, stage: Stage, key: str) -> Iterator[None]:
        """Around the work of a stage: what it needs to go on after an interruption is kept. A local store
        keeps it in the work folder anyway.
        """
        yield

    def publish(self, stage: Stage, key: str, record: StageRecord) -> StageRecord:
        """Make the work folder of `key` its result: record last, everything on disk, then one rename.

        Returns the record that counts.
        """
        work, final = self.work_folder(stage, key), self.folder(stage, key)
        for path in work.rglob(TEMPORARY_FILES):
            path.unlink()
        write_checksummed(work / RECORD_NAME, record.model_dump_json(indent=1).encode())
        for path in sorted(work.rglob("*")):
            flush_to_disk(path)
        flush_to_disk(work)
        final.parent.mkdir(parents=True, exist_ok=True)
        while not rename_folder(work, final):
            # Reached only for a damaged result: take it away by a rename too, so that no reader sees half of
            # it.
            aside = work.with_name(f"{work.name}.damaged-{time.time_ns()}")
            os.rename(final, aside)
            shutil.rmtree(aside)
        flush_to_disk(final.parent)
        for name in stage.scratch:
            remove(final / name)
        return record

    def set_aside(self, stage: Stage, key: str, record: StageRecord) -> Path:
        """Keep the work folder of `key` with its record apart from the results, for a look at what differs.

        Returns a folder that is laid out as a store; `fairway gc` lists it.
        """
        apart = self.root / RECHECKS / f"{stage.name}-{key[:12]}-{time.time_ns()}"
        folder = apart / self.relative_folder(stage, key)
        write_checksummed(
            self.work_folder(stage, key) / RECORD_NAME, record.model_dump_json(indent=1).encode()
        )
        folder.parent.mkdir(parents=True)
        os.rename(self.work_folder(stage, key), folder)
        return apart

    @contextmanager
    def lock(self, stage: Stage, key: str) -> Iterator[None]:
        """Only one process makes `key` at a time.

        Raises StageError once a stop was requested.
        """
        path = self.root / "locks" / f"{stage.name}-{key[:_KEY_CHARACTERS]}.lock"
        with waiting_lock(path, stage.name, "which makes the same result"):
            yield


def open_store(options: RunOptions) -> Store:
    """The store that the options name. Raises as `open_store_at`."""
    return open_store_at(options.store, options.remote)


def open_store_at(folder: Path | str, remote: str | None) -> Store:
    """The store in `folder`; with the address of a remote store, as the cache of it.

    Raises SpecError when either cannot be used, and for a folder of other files, which a store would fill.
    """
    _refuse_other_files(_root_of(folder))
    if not remote:
        return Store(folder)
    opened = open_remote_at(remote)
    from stages.store.shared import SharedStore

    return SharedStore(folder, opened)


def open_existing_store(folder: Path | str, remote: str | None) -> Store:
    """As `open_store_at`, but makes no store, except as the cache of a remote one.

    Raises SpecError too for a folder that is no store.
    """
    if awaits_store(folder, remote) and not remote:
        raise SpecError(f"store = {_root_of(folder)}: holds no finished run. `fairway run` makes one")
    return open_store_at(folder, remote)


def awaits_store(folder: Path | str, remote: str | None) -> bool:
    """Whether the folder is no store yet but may become one: the default one, or the cache of a remote store.

    False: it is a store. Raises SpecError for any other folder.
    """
    root = _root_of(folder)
    if is_store(root):
        return False
    default = RunOptions.model_fields["store"].default
    if (remote or Path(folder) == Path(default)) and not _other_files(root):
        return True
    place = "in this folder" if root.is_dir() else "and no such folder"
    raise SpecError(
        f"--store {folder}: there is no store {place}. Check --store or FAIRWAY_STORE; `fairway run` makes a "
        "store"
    )


def is_store(root: Path) -> bool:
    """Whether the folder was opened as a store, or holds a result or a run."""
    return any(next(root.glob(pattern), None) is not None for pattern in _SIGNS)


def _root_of(folder: Path | str) -> Path:
    return Path(folder).expanduser().resolve()


def _refuse_other_files(root: Path) -> None:
    if root.is_dir() and not is_store(root) and (found := _other_files(root)):
        names = f"{', '.join(found[:3])}{', …' * (len(found) > 3)}"
        raise SpecError(
            f"--store {root}: is no store, and holds other files ({names}), among which a store would lie. "
            "Give a new or an empty folder by --store or FAIRWAY_STORE"
        )


def _other_files(root: Path) -> list[str]:
    """What lies there and neither belongs to a store nor is a log or hidden; a file in its place counts."""
    try:
        names = sorted(path.name for path in root.iterdir())
    except NotADirectoryError:
        return [root.name]
    except OSError:  # nothing there, or not to be read: opening it says so
        return []
    return [name for name in names if not any(fnmatch(name, pattern) for pattern in (*_OWN, *_BESIDE))]


def open_remote_at(remote: str | None) -> "Remote":
    """The remote store. Raises SpecError when there is none, it cannot be used, or obstore is missing."""
    if not remote:
        raise SpecError("--shared: names no remote store. Give its address by --remote or FAIRWAY_REMOTE")
    try:
        url = remote_address(remote)
    except ValueError as error:
        raise SpecError(f"remote: {error}") from None
    try:
        from stages.store.remote import open_remote  # not installed unless a remote is wanted
    except ModuleNotFoundError as error:
        raise without_obstore(error, f"remote = {url}") from None
    return open_remote(url)


def sound_record(stage: Stage, key: str, content: bytes) -> StageRecord:
    """The record of `key`. Raises ValueError for one that is damaged or of another version or key."""
    record = stage.record_type().model_validate_json(content)
    if record.provenance.key != key or record.provenance.stage != stage.name:
        raise ValueError("it belongs to another result")
    return record


def rename_folder(folder: Path, target: Path) -> bool:
    """Whether the folder is `target` now; False: a folder with something in it is there already."""
    try:
        os.rename(folder, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def remove(path: Path) -> None:
    """Remove a file or a whole folder; a missing one is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def file_refs(value: Any) -> Iterator[FileRef | SourceFile]:
    """Every file reference inside a record, depth first."""
    if isinstance(value, (FileRef, SourceFile)):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from file_refs(getattr(value, name))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from file_refs(item)
