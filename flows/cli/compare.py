"""The command fairway compare."""

from pathlib import Path
from typing import Annotated

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
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN RUN…", help="ids or names of two or more runs, the beginning of either, or 'last'"
        ),
    ],
    everything: Annotated[
        bool, typer.Option("--all", help="show settings and verdicts that are equal, too")
    ] = False,
    csv: Annotated[Path | None, typer.Option(help="write a table for spreadsheets and pandas")] = None,
    html: Annotated[Path | None, typer.Option(help="write one page with the training curves")] = None,
    store: StoreFolder = DEFAULT_STORE,
    remote: RemoteStore = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Runs side by side: settings that differ, why stages ran again, figures, verdicts and curves."""
    with clear_errors(debug):
        from flows.cli.terminal import print_compared
        from flows.results.compared import compare_runs, find_runs
        from stages.store.runs import list_reports
        from stages.store.store import open_existing_store

        opened = open_existing_store(store, remote)
        finished = list_reports(opened.runs_root())
        reports = find_runs(opened, finished, runs)
        found = compare_runs(opened, reports, finished)
        if csv is not None:
            from flows.results.compared_page import csv_text, write_file

            write_file(csv, csv_text(found, everything), "--csv")
        if html is not None:
            from flows.results.compared_page import page, read_curves, write_file

            write_file(html, page(found, read_curves(opened, found, reports), everything), "--html")
        if json:
            print_json(found.model_dump(mode="json"))
        else:
            print_compared(make_console(), found, everything)
        say_written(csv, html, json=json)
