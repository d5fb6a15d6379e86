"""Notes of runs in a store: `<store>/runs/<run id>/notes.json`, beside the report, with its checksum.

    add_note(store, run, "the best so far")        add_tags(store, run, ["baseline"])        pin(store, run)

No key and no report contains them. It needs neither Prefect nor torch.
"""

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.errors import SpecError, first_line
from schemas.notes import MAX_NOTE_CHARACTERS, MAX_TAG_CHARACTERS, NOTES_VERSION, TAG_PATTERN, RunNotes
from schemas.pipeline import PipelineReport
from stages.core.checksummed import read_checksummed, write_checksummed
from stages.processes.locks import waiting_lock

if TYPE_CHECKING:
    from stages.store.store import Store

log = logging.getLogger(__name__)

NOTES_NAME = "notes.json"
PINNED = "pinned"
"""The tag that a pinned run has on a Prefect server."""

Change = Callable[[RunNotes], RunNotes]


def add_note(store: "Store", run: PipelineReport, text: str) -> RunNotes:
    """Add a text to a run, with the time. Returns the run's notes.

    Raises SpecError for a text that is empty or too long, and for notes that cannot be read.
    """
    text = text.strip()
    if not 1 <= len(text) <= MAX_NOTE_CHARACTERS:
        raise SpecError(f"TEXT: has {len(text):,} characters. Give 1 to {MAX_NOTE_CHARACTERS:,}")
    created_at = datetime.now(UTC).isoformat(timespec="seconds")
    return store.change_notes(run.run_id, lambda notes: notes.with_note(text, created_at))


def remove_note(store: "Store", run: PipelineReport, number: int) -> RunNotes:
    """Remove the note of this number; the first one is 1. Returns the run's notes.

    Raises SpecError if there is none.
    """
    return store.change_notes(run.run_id, lambda notes: notes.without_note(number))


def add_tags(store: "Store", run: PipelineReport, tags: Sequence[str]) -> RunNotes:
    """Give a run these tags too. Returns the run's notes.

    Raises SpecError for a word that cannot be a tag.
    """
    for tag in tags:
        if len(tag) > MAX_TAG_CHARACTERS or not re.fullmatch(TAG_PATTERN, tag):
            raise SpecError(
                f"TAG = {tag}: cannot be a tag. Give a word of at most {MAX_TAG_CHARACTERS} letters, digits "
                "and _ . : = / + -, with a letter or digit first"
            )
    return store.change_notes(run.run_id, lambda notes: notes.with_tags(tuple(tags)))


def remove_tags(store: "Store", run: PipelineReport, tags: Sequence[str]) -> RunNotes:
    """Take tags from a run. Returns the run's notes. Raises SpecError for one that it does not have."""
    return store.change_notes(run.run_id, lambda notes: notes.without_tags(tuple(tags)))


def pin(store: "Store", run: PipelineReport, pinned: bool = True) -> RunNotes:
    """Pin a run, so that `gc` and `forget` leave it and its results alone, or unpin it.

    Returns the run's notes.
    """
    return store.change_notes(run.run_id, lambda notes: notes.derive(pinned=pinned))


def load_notes(root: Path, run_id: str) -> RunNotes:
    """The notes of the run with exactly this id; empty if it has none.

    Raises SpecError for notes that cannot be read.
    """
    path = root / "runs" / run_id / NOTES_NAME
    try:
        return notes_of_json(read_checksummed(path), str(path))
    except FileNotFoundError as error:
        if not path.exists():
            return RunNotes()
        raise SpecError(
            f"{path}: its checksum {error.filename} is missing. Restore or remove both"
        ) from error
    except (OSError, ValueError) as error:
        raise SpecError(
            f"{path}: damaged ({first_line(error)}). Restore it, or remove it with its checksum"
        ) from error


def notes_of_json(content: bytes, place: str) -> RunNotes:
    """The notes in a record. Raises SpecError, which names `place`, for one of another version, and
    ValueError for one that is damaged.
    """
    record = json.loads(content)
    version = record.get("schema_version") if isinstance(record, dict) else None
    if version != NOTES_VERSION:
        raise SpecError(
            f"{place}: notes of version {version}, this Fairway reads {NOTES_VERSION}. Use the Fairway that "
            "wrote them"
        )
    return RunNotes.model_validate_json(content)


def notes_as_json(notes: RunNotes) -> bytes:
    """The record of the notes, the same in a store and in a remote store."""
    return notes.model_dump_json(indent=1).encode()


def save_notes(root: Path, run_id: str, notes: RunNotes) -> None:
    """Write the notes, whole or not at all. Only for the holder of their lock."""
    path = root / "runs" / run_id / NOTES_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checksummed(path, notes_as_json(notes))


@contextmanager
def changing(root: Path, run_id: str) -> Iterator[RunNotes]:
    """The notes of a run, which only this process changes meanwhile."""
    with waiting_lock(root / "locks" / f"notes-{run_id}.lock", f"notes of {run_id}", "which changes them"):
        yield load_notes(root, run_id)


def notes_of(root: Path, run_ids: Iterable[str]) -> dict[str, RunNotes]:
    """By run id, the notes of these runs. The log names notes that cannot be read; they count as none."""
    found = {}
    for run_id in run_ids:
        try:
            found[run_id] = load_notes(root, run_id)
        except SpecError as error:
            log.warning("%s", error)
            found[run_id] = RunNotes()
    return found


def pinned_runs(root: Path) -> set[str]:
    """The ids of all pinned runs. Notes that cannot be read count as a pin, and are named in the log."""
    pinned = set()
    for path in root.glob(f"runs/*/{NOTES_NAME}"):
        run_id = path.parent.name
        try:
            if not load_notes(root, run_id).pinned:
                continue
        except SpecError as error:
            log.warning("%s; until then the run counts as pinned", error)
        pinned.add(run_id)
    return pinned
