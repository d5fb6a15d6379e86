"""Housekeeping of the store: `fairway gc`, `fairway forget` and `fairway verify`.

It needs neither Prefect nor torch.
"""

import json
import logging
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import FairwayError, SpecError, StageError, on_one_line
from schemas.files import FileRef
from schemas.pipeline import PipelineReport
from schemas.stages import KNOWN_STAGES, STAGES
from stages.core.checksummed import read_checksummed
from stages.core.whole_files import TEMPORARY_FILES
from stages.processes.locks import is_free
from stages.seeds.ledger import ledger_files, read_ledger
from stages.store.benchmarks import benchmark_folders
from stages.store.hashing import FileHashes
from stages.store.notes import load_notes, pinned_runs
from stages.store.runs import REPORT_NAME, list_reports, load_report
from stages.store.stopped import STOPPED_NAME, list_stopped, load_stopped
from stages.store.store import FETCHED, RECORD_NAME, USERS_LOCK, Store, file_refs, remove

log = logging.getLogger(__name__)

OLDER_THAN_HOURS = 24.0
_REMOVED = "removed-"
_NEEDS_UNKNOWN = "what that run needs is unknown, and nothing is removed. Restore it, or remove its folder"


class StoreInUseError(FairwayError):
    """Another process has the store open, so nothing may be removed now."""


@dataclass(frozen=True)
class Unneeded:
    """Something in the store that no run needs, and why."""

    path: Path
    num_bytes: int
    reason: str


def find_unneeded(
    store: Store, keep_runs: int | None = None, older_than_hours: float = OLDER_THAN_HOURS
) -> list[Unneeded]:
    """Everything that no run needs, sorted by path, except what changed in the last `older_than_hours`.

    Needed are the newest `keep_runs` runs (None: all), every pinned run and every run that a ledger names,
    with all their results. A run that a rule stopped is needed unless it is older than these. Raises
    StageError for a ledger or a report of a pinned run that cannot be read, because its needs are then
    unknown.
    """
    in_ledgers, pinned = _runs_in_ledgers(store.root), pinned_runs(store.root)
    reports = list_reports(store.root)
    if unknown := pinned - {report.run_id for report in reports}:
        raise StageError(
            f"{store.root / 'runs' / min(unknown)}: the run is pinned, and its report cannot be read; "
            f"{_NEEDS_UNKNOWN}"
        )
    newest = reports if keep_runs is None else reports[max(0, len(reports) - keep_runs) :]
    kept = {report.run_id for report in newest} | {
        report.run_id for report in reports if report.run_id in in_ledgers | pinned
    }
    needed = {path for report in reports if report.run_id in kept for path in _folders_of(report)}
    needed |= benchmark_folders(store.root, [report for report in reports if report.run_id in kept])
    unneeded = [
        (store.root / "runs" / report.run_id, "an older run")
        for report in reports
        if report.run_id not in kept
    ]
    oldest = newest[0].created_at if newest else "~"
    unneeded += [
        (store.root / "runs" / run.run_id, "an older run, which a rule stopped")
        for run in list_stopped(store.root)
        if keep_runs is not None and run.created_at < oldest
    ]
    for folder in sorted(store.root.glob("stages/*/*/")):
        stage = KNOWN_STAGES.get(folder.parent.name)
        if folder.relative_to(store.root).as_posix() not in needed:
            is_step = stage is not None and stage.name not in STAGES
            unneeded.append((folder, "a part of a corpus" if is_step else "a result that no run names"))
        elif stage is not None:
            unneeded += [
                (folder / name, "left over from training")
                for name in stage.scratch
                if (folder / name).exists()
            ]
    unneeded += _left_over(store.root)
    before = time.time() - 3600 * older_than_hours
    sized = [(path, reason, *_size_and_time(path)) for path, reason in unneeded]
    old = {path: Unneeded(path, size, reason) for path, reason, size, touched in sized if touched <= before}
    return [old[path] for path in sorted(old) if old.keys().isdisjoint(path.parents)]


def remove_unneeded(
    store: Store, keep_runs: int | None = None, older_than_hours: float = OLDER_THAN_HOURS
) -> list[Unneeded]:
    """Remove what `find_unneeded` finds.

    Raises StoreInUseError while another process uses the store.
    """
    with _alone(store):
        unneeded = find_unneeded(store, keep_runs, older_than_hours)
        _take_away(store, unneeded)
        for left in store.root.glob(f"work/{_REMOVED}*"):
            remove(left)
    return unneeded


def find_forgotten(store: Store, runs: Sequence[PipelineReport]) -> list[Unneeded]:
    """What `forget` would remove: the folders of the runs, and the results that only these runs need.

    Raises SpecError for a run that is pinned or in a ledger, and StageError where another run's report
    cannot be read, because its needs are then unknown.
    """
    root = store.runs_root()
    forgotten, pinned = {run.run_id for run in runs}, pinned_runs(root)
    for run in runs:
        if run.run_id in pinned:
            raise SpecError(f"RUN = {run.name}: is pinned. `fairway pin {run.run_id} --remove` unpins it")
    for path in ledger_files(root):
        for entry in read_ledger(path).entries:
            if entry.run_id in forgotten:
                raise SpecError(
                    f"RUN = {entry.run_name}: the ledger {path.parent.name} names it as seed {entry.seed}. "
                    f"Move {path.parent} away first; its statistics are lost then"
                )
    others = [path for place in {root, store.root} for path in place.glob("runs/*/")]
    needed = {
        folder for path in others if path.name not in forgotten for folder in _folders_in(path / REPORT_NAME)
    }
    others_here = [report for report in list_reports(root) if report.run_id not in forgotten]
    results = {folder for run in runs for folder in _folders_of(run)} - needed
    results |= benchmark_folders(store.root, runs) - benchmark_folders(store.root, others_here)
    reports = [(store.root / "runs" / run_id, "the run's report and notes") for run_id in sorted(forgotten)]
    found = [*reports, *((store.root / name, "a result that no other run needs") for name in sorted(results))]
    return [Unneeded(path, _size_and_time(path)[0], why) for path, why in found if path.exists()]


def forget(store: Store, runs: Sequence[PipelineReport]) -> list[Unneeded]:
    """Remove runs with their notes and what `find_forgotten` finds. A remote store forgets the runs too; its
    files stay until `fairway gc --shared`.

    Raises as `find_forgotten` does, and StoreInUseError while another process uses the store.
    """
    with _alone(store):
        found = find_forgotten(store, runs)
        for run in runs:
            store.forget_report(run.run_id)
        _take_away(store, found)
    return found


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    """Raises StoreInUseError while another process uses the store; for the block none can begin to."""
    with store.alone() as alone:
        if not alone:
            raise StoreInUseError(
                f"store = {store.root}: a run is in progress. Nothing was removed; try again when it is done"
            )
        yield


def _take_away(store: Store, items: Sequence[Unneeded]) -> None:
    for item in items:
        # Renamed first: what a kill leaves half removed is not found as a result.
        aside = store.root / "work" / f"{_REMOVED}{time.time_ns()}" / item.path.name
        aside.parent.mkdir()
        os.rename(item.path, aside)
        remove(aside.parent)


def find_damage(store: Store) -> Iterator[str]:
    """A message for everything that is damaged.

    Every byte is read again; the remembered digest of a damaged file is dropped.
    """
    read_anew, checked = FileHashes(None), set()
    for folder in sorted(store.root.glob("stages/*/*/")):
        record_path = folder / RECORD_NAME
        stage = KNOWN_STAGES.get(folder.parent.name)
        if stage is None:
            yield f"{folder}: there is no stage {folder.parent.name}"
            continue
        try:
            record = stage.record_type().model_validate_json(read_checksummed(record_path))
        except FileNotFoundError as error:
            yield f"{error.filename} is missing"
            continue
        except (OSError, ValueError) as error:
            yield f"{record_path} is damaged or of another version: {on_one_line(error)}"
            continue
        if store.folder(stage, record.provenance.key) != folder or record.provenance.stage != stage.name:
            yield f"{record_path} belongs to another result"
        for ref in file_refs(record.result):
            checked.add(ref.path)
            yield from _damage_of(store, ref, read_anew)
    for path in sorted(store.root.glob("runs/*/")):
        try:
            report = load_report(store.root, path.name) or load_stopped(path)
        except SpecError as error:
            yield str(error)
            continue
        try:
            load_notes(store.root, path.name)
        except SpecError as error:
            yield str(error)
        if report is None:
            yield f"{path / REPORT_NAME} is missing"
            continue
        for ref in file_refs(report):
            if ref.path not in checked:
                checked.add(ref.path)
                for problem in _damage_of(store, ref, read_anew):
                    yield f"run {report.name}: {problem}"
    for path in ledger_files(store.root):
        try:
            read_ledger(path)
        except SpecError as error:
            yield str(error)


def _damage_of(store: Store, ref: object, hashes: FileHashes) -> Iterator[str]:
    if not isinstance(ref, FileRef):
        return  # a file of the user's, outside the store: tokenization looks at it
    path = store.root / ref.path
    if problem := hashes.problem_with(path, ref.num_bytes, ref.sha256):
        store.hashes.forget(path)
        if path.exists() or store.problem(ref):  # what a remote store has need not be here
            yield problem


def _folders_of(report: PipelineReport) -> Iterator[str]:
    for summary in report.stages:
        if summary.stage in STAGES:
            yield str(Store.relative_folder(STAGES[summary.stage], summary.key))
    for ref in file_refs(report):
        yield "/".join(ref.path.split("/")[:3])


def _folders_in(report: Path) -> Iterator[str]:
    """The results that a report names, of whatever version of Fairway it is. Raises StageError."""
    try:
        content = json.loads(text := read_checksummed(report).decode())
        yield from re.findall(r'"(stages/[^/"]+/[^/"]+)/', text)
        for done in content["stages"]:
            if done["stage"] in STAGES:
                yield str(Store.relative_folder(STAGES[done["stage"]], done["key"]))
    except FileNotFoundError as error:
        if report.exists():
            raise StageError(f"{report}: {error.filename} is missing; {_NEEDS_UNKNOWN}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StageError(f"{report}: damaged ({on_one_line(error)}); {_NEEDS_UNKNOWN}") from error


def _runs_in_ledgers(root: Path) -> set[str]:
    """The ids of all runs that a ledger names. Raises StageError for a ledger that cannot be read."""
    try:
        return {entry.run_id for path in ledger_files(root) for entry in read_ledger(path).entries}
    except SpecError as error:
        raise StageError(f"{error}; until then its runs are unknown, and nothing is removed") from error


def _left_over(root: Path) -> Iterator[tuple[Path, str]]:
    """Everything that is neither a result nor a run, and the reason why it exists."""
    for path in root.glob("work/*/*"):
        if path.parent.name.startswith(_REMOVED):
            continue
        if ".damaged-" in path.name:
            yield path, "a damaged result, made again since"
        elif path.parent.name == FETCHED:
            yield path, "a record whose fetching was interrupted"
        else:
            yield path, "an unfinished result; the same run would resume it"
    for path in root.glob(f"work/{_REMOVED}*"):
        yield path, "left over from an interrupted removal"
    for path in root.glob("recheck/*"):
        yield path, "the store of a recheck that was interrupted or gave other figures"
    for path in root.glob("cache/*"):
        yield path, "a library's cache; it is filled again when needed"
    for path in root.glob("runs/*/"):
        if not (path / REPORT_NAME).exists() and not (path / STOPPED_NAME).exists():
            yield path, "a run that was interrupted before its report was written"
    for place in ("runs/*", "ledgers/*", "stages/*/*/**"):
        for path in root.glob(f"{place}/{TEMPORARY_FILES}"):
            yield path, "a file whose writer was interrupted"
    for path in root.glob("locks/*.lock"):
        if path.name != USERS_LOCK and _is_given_up(path):
            yield path, "a lock that nobody holds"


def _is_given_up(lock: Path) -> bool:
    try:
        return is_free(lock)
    except FileNotFoundError:
        return False  # its holder has just removed it


def _size_and_time(path: Path) -> tuple[int, float]:
    """Bytes, and the time of the last change inside; infinity for an item that has just gone, so that it
    counts as new.
    """
    size, touched = 0, -math.inf
    inside = (
        os.path.join(folder, name) for folder, folders, files in os.walk(path) for name in (*folders, *files)
    )
    for item in (str(path), *inside):
        try:
            status = os.lstat(item)
        except FileNotFoundError:  # a run in progress goes on beside this
            touched = math.inf
            continue
        size, touched = size + status.st_size, max(touched, status.st_mtime)
    return size, touched
