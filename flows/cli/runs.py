"""The command `fairway runs`: a list of the runs, and their table or curves as a file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.base import (
    DEFAULT_STORE,
    Debug,
    Json,
    RemoteStore,
    StoreFolder,
    app,
    clear_errors,
    make_console,
    print_json,
    say_written,
)


@app.command()
def runs(
    run: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]…", help="only these runs: ids or names, the beginning of either, or 'last'"
        ),
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(metavar="TAG", help="only runs with this tag; may be repeated")
    ] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="sort by a column of the table, as val_bpb")
    ] = None,
    descending: Annotated[bool, typer.Option("--descending", help="sort the largest value first")] = False,
    csv: Annotated[
        Path | None, typer.Option(help="write one row a run: figures, notes, settings that differ")
    ] = None,
    parquet: Annotated[Path | None, typer.Option(help="the same as Parquet, with the types")] = None,
    curves: Annotated[
        bool, typer.Option("--curves", help="write one row a training step to these files instead")
    ] = False,
    store: StoreFolder = DEFAULT_STORE,
    remote: RemoteStore = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """The finished runs in the store, and all others that the configured Prefect server knows, the newest
    last.
    """
    with clear_errors(debug):
        from flows.cli.terminal import print_runs
        from flows.results.run_table import choose_runs, curves_table, runs_table, sort_by, write_tables
        from flows.results.tables import as_server_run
        from flows.server.runs import configured_server, server_runs
        from schemas.errors import SpecError
        from stages.store.notes import notes_of
        from stages.store.runs import list_reports
        from stages.store.stopped import list_stopped
        from stages.store.store import awaits_store, open_existing_store

        if curves and csv is None and parquet is None:
            raise SpecError("--curves: names no file. Give --csv FILE or --parquet FILE")
        awaits_store(store, remote)  # refuses what is no store
        root = store.expanduser().resolve()
        opened = open_existing_store(store, remote) if remote or curves else None  # not made to look at it
        place = opened.runs_root() if opened else root
        known = {item.run_id: as_server_run(item) for item in list_stopped(root)}
        known |= {item["run_id"]: item for item in (server_runs() if configured_server(root) else ())}
        reports = list_reports(place)
        notes = notes_of(place, [report.run_id for report in reports])
        chosen, column = choose_runs(place, reports, notes, run or (), tag or ()), sort or "started"
        values = [None] * len(chosen)
        if sort or descending:
            chosen, values = sort_by(chosen, notes, column, descending)
        if csv is not None or parquet is not None:
            table = curves_table(opened, chosen) if curves and opened else runs_table(chosen, notes)
            write_tables(table, csv, parquet)
        entries = [
            {
                column: value,
                **_entry(report, root, known.get(report.run_id, {})),
                **notes[report.run_id].as_json(),
            }
            for report, value in zip(chosen, values, strict=True)
        ]
        if not (run or tag):
            entries += [item for run_id, item in known.items() if run_id not in notes]
        if not (sort or descending):
            entries = sorted(entries, key=lambda entry: entry["started"] or "~")
        if json:
            print_json(entries)
        else:
            print_runs(make_console(), entries, sort or "")
        say_written(csv, parquet, json=json)


def _entry(report: Any, root: Path, known: dict[str, Any]) -> dict[str, Any]:
    """The figures of a finished run, and its state on the server."""
    from flows.cli.terminal import report_json

    figures = {key: value for key, value in report_json(report, root).items() if key != "report"}
    state = known.get("state") or ("Completed" if report.size.fits else "Failed")
    return {**figures, "started": report.created_at, "state": state}
