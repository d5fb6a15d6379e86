"""Maintenance of a remote store: objects that no run needs, and damaged ones.

`fairway gc --shared` and `fairway verify --shared` are made of it.

Documents are read as plain JSON, so that machines with another version of Fairway keep what they need.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from schemas.errors import StageError
from schemas.stages import STAGES
from stages.store.housekeeping import Unneeded
from stages.store.remote import DamagedObjectError, Remote, RemoteObject, blob_name
from stages.store.store import Store

OLDER_THAN_HOURS = 7 * 24.0
"""Files are uploaded before the record that names them; a slow upload must be over by then."""

_AT_ONCE = 16


def find_unneeded_objects(remote: Remote, keep_runs: int | None, older_than_hours: float) -> list[Unneeded]:
    """What no run needs, by name; nothing that was written in the last `older_than_hours`.

    Needed are the newest `keep_runs` runs (None: all), every pinned run and every run that a ledger names,
    their records, the files that any record or checkpoint which stays names. Raises StageError for a ledger
    that is damaged.
    """
    before = datetime.now(UTC) - timedelta(hours=older_than_hours)
    reports = {name: content for name, content in _contents(remote, "runs/").items() if content is not None}
    newest = sorted(reports, key=lambda name: reports[name]["created_at"])
    ledgers, in_ledgers = _ledgers(remote)
    kept = set(newest if keep_runs is None else newest[max(0, len(newest) - keep_runs) :])
    notes, pinned = _notes(remote)
    kept |= {name for name in reports if name.removeprefix("runs/") in in_ledgers | pinned}
    needed = {name for run in kept for name in _records_of(reports[run])}
    named = {name for run in kept for name in _files_in(reports[run])}
    found = [
        (item, "an older run")
        for item in remote.objects("runs/")
        if item.name in reports and item.name not in kept
    ]
    found += ledgers
    found += [
        (item, "notes of a run that is not there") for run_id, item in notes if f"runs/{run_id}" not in kept
    ]
    records = _contents(remote, "stages/")
    for item in remote.objects("stages/"):
        if item.name in needed or item.modified_at > before:
            named.update(_files_in(records.get(item.name)))
        else:
            found.append((item, "a result that no run names"))
    for place, items in _tries(remote).items():
        if max(item.modified_at for item in items) > before:
            named.update(_files_in(_read(remote, f"{place}/manifest")))
        else:
            found += [(item, "an unfinished result") for item in items]
    found += [
        (item, "a file that no record names") for item in remote.objects("blobs/") if item.name not in named
    ]
    found += [(item, "left by an opening that was interrupted") for item in remote.objects("probe/")]
    old = [(item, why) for item, why in found if item.modified_at <= before]
    return [Unneeded(Path(item.name), item.num_bytes, why) for item, why in old]


def remove_unneeded_objects(remote: Remote, keep_runs: int | None, older_than_hours: float) -> list[Unneeded]:
    """Take away what `find_unneeded_objects` finds: runs first, then records, then files."""
    unneeded = find_unneeded_objects(remote, keep_runs, older_than_hours)
    remote.delete([item.path.as_posix() for item in unneeded])
    return unneeded


def find_damaged_objects(remote: Remote) -> Iterator[str]:
    """Everything that is damaged or missing, in words. Every byte is read; damaged files are taken away, so
    that the next run uploads them again.
    """
    sizes = {item.name: item.num_bytes for item in remote.objects("blobs/")}
    for prefix in ("stages/", "runs/", "ledgers/", "notes/"):
        for item in remote.objects(prefix):
            try:
                content = json.loads(remote.read(item.name) or b"null")
            except DamagedObjectError as error:
                yield str(error)
                continue
            missing = [name for name in _files_in(content) if name not in sizes]
            yield from (f"{remote.url}: {item.name} names {name}, which is missing" for name in missing)
    for name, num_bytes in sizes.items():
        try:
            for _ in remote.pieces(name, num_bytes, name.rpartition("/")[2]):
                continue
        except DamagedObjectError as error:
            yield str(error)


def _contents(remote: Remote, prefix: str) -> dict[str, Any]:
    """Name -> JSON of every document, None for one that is damaged."""
    names = [item.name for item in remote.objects(prefix)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return dict(zip(names, pool.map(lambda name: _read(remote, name), names), strict=True))


def _read(remote: Remote, name: str) -> Any:
    try:
        return json.loads(remote.read(name) or b"null")
    except DamagedObjectError:
        return None  # `verify` names it, and the next run replaces it


def _ledgers(remote: Remote) -> tuple[list[tuple[RemoteObject, str]], set[str]]:
    """The versions of ledgers that are not the newest, and the ids of all runs that the newest name."""
    newest = dict[str, RemoteObject]()
    old = list[tuple[RemoteObject, str]]()
    for item in remote.objects("ledgers/"):
        label = item.name.rpartition("/")[0]
        if label in newest:
            old.append((newest[label], "an older version of a ledger"))
        newest[label] = item
    runs = set[str]()
    for item in newest.values():
        content = _read(remote, item.name)
        if not isinstance(content, dict) or "ledger" not in content:
            raise StageError(
                f"{remote.url}: {item.name} is damaged or of another version; until it is removed nobody "
                "can say which runs it needs, and nothing is removed"
            )
        runs.update(entry["run_id"] for entry in content["ledger"]["entries"])
    return old, runs


def _notes(remote: Remote) -> tuple[list[tuple[str, RemoteObject]], set[str]]:
    """Every version of notes with the id of its run, and the ids of all pinned runs.

    A run whose newest notes cannot be read counts as pinned.
    """
    versions = [(item.name.split("/")[1], item) for item in remote.objects("notes/")]
    contents = {run_id: _read(remote, item.name) for run_id, item in dict(versions).items()}
    pinned = {
        run_id
        for run_id, content in contents.items()
        if not isinstance(content, dict) or content.get("pinned") is not False
    }
    return versions, pinned


def _tries(remote: Remote) -> dict[str, Sequence[RemoteObject]]:
    tries = dict[str, list[RemoteObject]]()
    for item in remote.objects("work/"):
        tries.setdefault(item.name.rpartition("/")[0], []).append(item)
    return {**tries}


def _records_of(report: Any) -> Iterator[str]:
    for done in report["stages"]:
        if done["stage"] in STAGES:
            yield Store.relative_folder(STAGES[done["stage"]], done["key"]).as_posix()


def _files_in(content: Any) -> Iterator[str]:
    """The blobs of all files of the store that JSON refers to."""
    if isinstance(content, dict):
        if {"path", "sha256", "num_bytes"} <= content.keys() and not content["path"].startswith("/"):
            yield blob_name(content["sha256"])
        for value in content.values():
            yield from _files_in(value)
    elif isinstance(content, list):
        for value in content:
            yield from _files_in(value)
