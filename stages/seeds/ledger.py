"""Ledgers of seed validations: <store>/ledgers/<name>-<configuration>/ledger.parquet, one row a seed,
replaced whole.

Read one with any Parquet reader; the file's metadata (`fairway`) holds what the rows have in common.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from schemas.errors import SpecError
from schemas.seeds import Ledger, SeedEntry, SeedFigures
from stages.core.whole_files import write_whole
from stages.processes.locks import waiting_lock

FILE_NAME = "ledger.parquet"
_KINDS = {
    "seed": pa.int64(),
    "tries": pa.int64(),
    "num_targets": pa.int64(),
    "num_bytes": pa.int64(),
    "total_bytes": pa.int64(),
}
_FIGURES = tuple(SeedFigures.model_fields)
_ENTRY = tuple(name for name in SeedEntry.model_fields if name != "figures")


def ledger_path(store: Path, ledger: Ledger) -> Path:
    return store / "ledgers" / ledger.label / FILE_NAME


def ledger_files(store: Path) -> list[Path]:
    """The file of every ledger in the store, in the order of their labels."""
    return sorted((store / "ledgers").glob(f"*/{FILE_NAME}"))


@contextmanager
def open_locked(store: Path, ledger: Ledger) -> Iterator[Ledger]:
    """Gives the ledger as it lies in the store, or `ledger` itself if there is none yet; only one process
    at a time has it.

    Raises SpecError when it was declared with another first seed or maximum. Raises
    StageError when a stop is asked for while this waits. The kernel frees the lock of a killed process.
    """
    path = ledger_path(store, ledger)
    path.parent.mkdir(parents=True, exist_ok=True)
    with waiting_lock(path.parent / "lock", f"ledger {ledger.label}", "which adds seeds to it"):
        found = read_ledger(path) if path.exists() else ledger
        refuse_other_plan(found, ledger)
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
    """The ledger in a file. Raises SpecError for one that cannot be read: it is never begun anew silently."""
    try:
        table = pq.read_table(path)
        common = json.loads(table.schema.metadata[b"fairway"])
        return Ledger(**common, entries=tuple(_entry(row) for row in table.to_pylist()))
    except (OSError, KeyError, ValueError, pa.ArrowInvalid, ValidationError) as error:
        raise SpecError(
            f"{path}: damaged or of another version ({str(error).splitlines()[0]}). Restore it or "
            "move it away"
        ) from error


def write_ledger(store: Path, ledger: Ledger) -> None:
    """Replace the file, whole or not at all. Only for the holder of the lock."""
    path = ledger_path(store, ledger)
    rows = [
        {**entry.model_dump(exclude={"figures"}), **(entry.figures.model_dump() if entry.figures else {})}
        for entry in ledger.entries
    ]
    schema = pa.schema([(name, _kind(name)) for name in (*_ENTRY, *_FIGURES)])
    common = {"fairway": ledger.model_dump_json(exclude={"entries"})}
    content = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema.with_metadata(common)), content)
    write_whole(path, content.getvalue().to_pybytes())


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


def _kind(name: str) -> Any:
    if name in _KINDS:
        return _KINDS[name]
    return pa.float64() if name.startswith("val_") else pa.string()


def _entry(row: dict[str, Any]) -> SeedEntry:
    figures = {name: row.pop(name) for name in _FIGURES}
    return SeedEntry(**row, figures=SeedFigures(**figures) if figures["val_loss_nats"] is not None else None)
