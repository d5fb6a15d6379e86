"""Commands of the run book: fairway note | tag | pin | forget."""

from typing import Annotated, Any

import typer
from rich.console import Console

from flows.cli.base import RunName, app
from flows.cli.options import STORE, OnDemand, Terminal, with_run_options


@app.command(cls=OnDemand)
@with_run_options(*STORE, existing=True)
def note(
    run: RunName,
    text: Annotated[
        str | None, typer.Argument(metavar="[TEXT]", help="a text to add; without it the notes are shown")
    ] = None,
    remove: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="remove the note of this number")
    ] = None,
    *,
    terminal: Terminal,
) -> None:
    """Add a note to a run, or show its notes."""
    from stages.store.notes import add_note, load_notes, remove_note

    opened, report = _find(terminal, run)
    if remove is not None:
        remove_note(opened, report, remove)
    if text is not None:
        add_note(opened, report, text)
    _tell(terminal, report, load_notes(opened.runs_root(), report.run_id))


@app.command(cls=OnDemand)
@with_run_options(*STORE, existing=True)
def tag(
    run: RunName,
    tags: Annotated[list[str], typer.Argument(metavar="TAG…", help="one or more words")],
    remove: Annotated[bool, typer.Option("--remove", help="take these tags away")] = False,
    *,
    terminal: Terminal,
) -> None:
    """Give tags to a run, or take them away. `fairway runs --tag TAG` lists the runs with a tag."""
    from stages.store.notes import add_tags, remove_tags

    opened, report = _find(terminal, run)
    served = _is_served(opened)
    notes = (remove_tags if remove else add_tags)(opened, report, tags)
    if served:
        _show_on_server(report, tags, remove)
    _tell(terminal, report, notes)


@app.command(cls=OnDemand)
@with_run_options(*STORE, existing=True)
def pin(
    run: RunName,
    remove: Annotated[bool, typer.Option("--remove", help="unpin the run")] = False,
    *,
    terminal: Terminal,
) -> None:
    """Pin a run: `fairway gc` and `fairway forget` then leave it and its results alone."""
    from stages.store import notes

    opened, report = _find(terminal, run)
    served = _is_served(opened)
    changed = notes.pin(opened, report, pinned=not remove)
    if served:
        _show_on_server(report, [notes.PINNED], remove)
    _tell(terminal, report, changed)


@app.command(cls=OnDemand)
@with_run_options(*STORE, existing=True)
def forget(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN…", help="ids of runs, the beginning of an id, 'last', or a name for all runs of it"
        ),
    ],
    remove: Annotated[
        bool, typer.Option("--remove", help="remove it; without this option forget only lists it")
    ] = False,
    *,
    terminal: Terminal,
) -> None:
    """List what only these runs need, or remove it with the runs. Removes nothing while a run is in
    progress.
    """
    from flows.cli.terminal import print_unneeded, unneeded_json
    from stages.store.housekeeping import find_forgotten
    from stages.store.housekeeping import forget as forget_runs
    from stages.store.runs import choose_run, list_reports, named_runs

    with terminal.opened as opened:
        place = opened.runs_root()
        reports = list_reports(place)
        found = [(choose_run(place, reports, wanted), wanted) for wanted in runs]
        meant = {run.run_id: run for pair in found for run in named_runs(reports, *pair)}
        items = (forget_runs if remove else find_forgotten)(opened, list(meant.values()))
        names = {run.name for run in meant.values()}
        same = sum(report.name in names and report.run_id not in meant for report in reports)

    def show(console: Console) -> None:
        title = f"What only {len(meant)} run{'s need' if len(meant) > 1 else ' needs'}"
        print_unneeded(console, items, opened.root, remove, title, "fairway forget --remove")
        if same:
            console.print(
                f"{same} other run{'s' if same > 1 else ''} of the same name share these results, which stay "
                "for them. Give the name in place of the id to forget all runs of it",
                soft_wrap=True,
            )

    terminal.tell(lambda: unneeded_json(items, remove), show)


def _find(terminal: Terminal, run: str) -> tuple[Any, Any]:
    """The store and the run's report."""
    from stages.store.runs import find_run

    return terminal.opened, find_run(terminal.runs_root, run)


def _is_served(store: Any) -> bool:
    """Whether a Prefect server is configured. Raises SpecError, before anything changes, if it is silent."""
    from flows.server.runs import configured_server

    return configured_server(store.root) is not None


def _show_on_server(report: Any, tags: list[str], remove: bool) -> None:
    """Give the tags to the flow run too, or take them from it."""
    from flows.server.runs import change_tags
    from flows.tasks.showing import only_shown

    with only_shown(f"the tags of {report.name} on the server"):
        change_tags(report.run_id, tags, remove)


def _tell(terminal: Terminal, report: Any, notes: Any) -> None:
    from flows.cli.terminal import print_notes

    terminal.tell(
        lambda: {"name": report.name, "run_id": report.run_id, **notes.as_json()},
        lambda console: print_notes(console, report, notes),
    )
