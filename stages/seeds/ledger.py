"""Ledgers of seed validations: <store>/ledgers/<name>-<configuration>/ledger.json, with its
checksum ledger.sha256 beside it, replaced whole.

Fairway wrote ledger.parquet until 2026, one row a seed. Such a ledger is read wherever ledgers are, and the
next seed validation that opens it writes it as ledger.json.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import SpecError, first_line
from schemas.seeds import LEDGER_VERSION, Ledger, LedgerRecord, SeedEntry, SeedFigures
from stages.core.checksummed import read_checksummed, write_checksummed
from stages.processes.locks import waiting_lock

log = logging.getLogger(__name__)

FILE_NAME = "ledger.json"
PARQUET_NAME = "ledger.parquet"


def ledger_path(store: Path, ledger: Ledger) -> Path:
    return store / "ledgers" / ledger.label / FILE_NAME


def ledger_files(store: Path) -> list[Path]:
    """The file of every ledger in the store, in the order of their labels."""
    files = (_file_in(folder) for folder in sorted((store / "ledgers").glob("*/")))
    return [path for path in files if path is not None]


@contextmanager
def open_locked(store: Path, ledger: Ledger) -> Iterator[Ledger]:
    """Gives the ledger as it lies in the store, or `ledger` itself if there is none yet; only one process
    at a time has it.

    Raises SpecError when it was declared with another first seed or maximum. Raises
    StageError when a stop is asked for while this waits. The kernel frees the lock of a killed process.
    """
    folder = ledger_path(store, ledger).parent
    folder.mkdir(parents=True, exist_ok=True)
    with waiting_lock(folder / "lock", f"ledger {ledger.label}", "which adds seeds to it"):
        path = _file_in(folder)
        found = read_ledger(path) if path else ledger
        refuse_other_plan(found, ledger)
        if (folder / PARQUET_NAME).exists():
            _take_over(store, found, folder / PARQUET_NAME)
        yield found


def refuse_other_plan(found: Ledger, wanted: Ledger) -> None:
    """Raises SpecError when `found` was declared with another first seed or maximum than is wanted now."""
    for name in ("first_seed", "max_seeds"):
        declared, asked = getattr(found, name), getattr(wanted, name)
        if declared != asked:
            raise SpecError(
                f"{name} = {asked}: ledger {wanted.label} was declared with {declared}, and a plan "
                f"changed after looking at figures spoils the test. Keep {declared}, or begin a ledger "
                "of another name"
            )


def read_ledger(path: Path) -> Ledger:
    """The ledger in a file of either kind. Raises SpecError for one that cannot be read: it is never begun
    anew silently.
    """
    try:
        if path.name == PARQUET_NAME:
            return _from_parquet(path)
        return ledger_of_json(read_checksummed(path), str(path))
    except FileNotFoundError as error:
        raise SpecError(
            f"{path}: {error.filename} is missing. Restore it or move the ledger's folder away"
        ) from error
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowInvalid) as error:
        raise SpecError(f"{path}: damaged ({first_line(error)}). Restore it or move it away") from error


def write_ledger(store: Path, ledger: Ledger) -> None:
    """Replace the file, whole or not at all. Only for the holder of the lock."""
    write_checksummed(ledger_path(store, ledger), ledger_as_json(ledger))


def ledger_as_json(ledger: Ledger) -> bytes:
    """The record of a ledger, the same in a store and in a remote store."""
    return LedgerRecord(ledger=ledger).model_dump_json(indent=1).encode()


def ledger_of_json(content: bytes, place: str) -> Ledger:
    """The ledger in a record. Raises SpecError, which names `place`, for one of another version, and
    ValueError for one that is damaged.
    """
    record = json.loads(content)
    version = record.get("schema_version") if isinstance(record, dict) else None
    if version != LEDGER_VERSION:
        raise SpecError(
            f"{place}: a ledger of version {version}, this Fairway reads {LEDGER_VERSION}. Go on with the "
            "Fairway that wrote it, or begin a ledger of another name"
        )
    return LedgerRecord.model_validate_json(content).ledger


def find_ledger(store: Path, wanted: str) -> Ledger:
    """The ledger whose label begins with `wanted`. Raises SpecError when none or more than one is meant."""
    paths = ledger_files(store)
    matching = [path for path in paths if path.parent.name == wanted] or [
        path for path in paths if path.parent.name.startswith(wanted)
    ]
    if len(matching) != 1:
        names = ", ".join(path.parent.name for path in matching or paths) or "none"
        raise SpecError(
            f"against = {wanted}: {'stands for several' if matching else 'no such ledger'}; ledgers: {names}"
        )
    return read_ledger(matching[0])


def _file_in(folder: Path) -> Path | None:
    """The file that counts. A kill during the takeover can leave both: then the JSON, which is newer."""
    return next((folder / name for name in (FILE_NAME, PARQUET_NAME) if (folder / name).exists()), None)


def _take_over(store: Path, ledger: Ledger, parquet: Path) -> None:
    """Write the ledger that was read as JSON, unless a kill came after that; then `parquet` goes."""
    if not ledger_path(store, ledger).exists():
        write_ledger(store, ledger)
    parquet.unlink()
    log.info("ledger %s: %s is now %s", ledger.label, PARQUET_NAME, FILE_NAME)


def _from_parquet(path: Path) -> Ledger:
    """A ledger of version 1: entry and figures side by side in a row, the rest in the file's metadata."""
    table = pq.read_table(path)
    common = json.loads(table.schema.metadata[b"fairway"])
    return Ledger(**common, entries=tuple(_entry(row) for row in table.to_pylist()))


def _entry(row: dict[str, Any]) -> SeedEntry:
    figures = {name: row.pop(name) for name in SeedFigures.model_fields}
    return SeedEntry(**row, figures=SeedFigures(**figures) if figures["val_loss_nats"] is not None else None)
