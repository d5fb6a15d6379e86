"""A note, tags and a pin for a run, from a form: the deployment `label-run`.

`fairway note`, `tag` and `pin` do the same in a terminal.
"""

import logging
from typing import Annotated, Literal

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run
from pydantic import Field

from flows.inputs.form import AS_IT_IS, Options, with_empty_fields
from flows.inputs.specs import run_options
from flows.results.notes_page import notes_markdown
from flows.server.runs import change_tags
from flows.tasks.showing import only_shown
from flows.tasks.tries import begin_try
from schemas.errors import SpecError
from schemas.notes import MAX_NOTE_CHARACTERS, RunNotes, Tag
from schemas.pipeline import PipelineReport
from stages.store import notes as book
from stages.store.runs import find_run, named_after
from stages.store.store import Store, open_store

log = logging.getLogger(__name__)


def _run_name() -> str:
    given = flow_run.parameters
    with open_store(run_options(given["options"])) as store:
        return named_after(store.runs_root(), given["run"], "label")


@with_empty_fields
@flow(name="label-run", flow_run_name=_run_name, persist_result=False)
def label_run(
    run: str = "last",
    note: Annotated[str, Field(max_length=MAX_NOTE_CHARACTERS)] = "",
    tags: tuple[Tag, ...] = (),
    remove_tags: tuple[Tag, ...] = (),
    pin: Literal["as it is", "pinned", "not pinned"] = AS_IT_IS,
    options: Options = None,
) -> RunNotes:
    """Add a note and tags to a run, or pin it. Its results do not change.

    Args:
        run: The run: its name or id, the beginning of either, or "last" for the newest.
        note: A text to add. Empty: none.
        tags: Tags to add, each one word.
        remove_tags: Tags to take away.
        pin: A pinned run and its results stay: neither `fairway gc` nor forget-run removes them.
        options: Where the store is; retries and times count for nothing here.
    """
    options = begin_try(options)
    if not (note.strip() or tags or remove_tags or pin != AS_IT_IS):
        raise SpecError("note, tags, remove_tags and pin are empty: nothing would change. Fill one of them")
    store = open_store(options)
    report = find_run(store.runs_root(), run)
    _change(store, report, note, tags, remove_tags, pin)
    changed = book.load_notes(store.runs_root(), report.run_id)
    log.info("%s: %d notes, tags %s", report.name, len(changed.notes), ", ".join(changed.tags) or "none")
    with only_shown("the notes of the run"):
        create_markdown_artifact(
            key="notes", markdown=notes_markdown(report, changed), description=f"notes of {report.name}"
        )
    return changed


def _change(
    store: Store,
    report: PipelineReport,
    note: str,
    tags: tuple[str, ...],
    remove_tags: tuple[str, ...],
    pin: str,
) -> None:
    """In the store, then on the server. What may be refused comes first, so that all or nothing changes."""
    added, removed = [*tags], [*remove_tags]
    if remove_tags:
        book.remove_tags(store, report, remove_tags)
    if tags:
        book.add_tags(store, report, tags)
    if note.strip():
        book.add_note(store, report, note)
    if pin != AS_IT_IS:
        book.pin(store, report, pinned=pin == "pinned")
        (added if pin == "pinned" else removed).append(book.PINNED)
    with only_shown(f"the tags of {report.name} on the server"):
        for changed, remove in ((removed, True), (added, False)):
            if changed:
                change_tags(report.run_id, changed, remove)
