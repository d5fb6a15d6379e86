"""Read-only commands: fairway describe | show | runs."""

from typing import Annotated

import typer

from flows.cli.base import (
    DEFAULT_STORE,
    Debug,
    Device,
    Json,
    Overrides,
    Processes,
    RemoteStore,
    Seed,
    StoreFolder,
    app,
    clear_errors,
    make_console,
    option_overrides,
    print_json,
)
from flows.cli.options import PRESETS_HELP, OnDemand


@app.command(cls=OnDemand)
def describe(
    preset: Annotated[str, typer.Argument(help=PRESETS_HELP)],
    set_: Overrides = None,
    seed: Seed = None,
    processes: Processes = None,
    device: Device = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the settings of a preset with units, the parameters by part, tokens, steps and estimated bytes."""
    with clear_errors(debug):
        from flows.cli.description import describe_spec, print_description
        from flows.inputs.specs import resolve, run_label

        spec = resolve(preset, option_overrides(set_, seed, processes, device))
        description = describe_spec(preset, run_label(preset, spec), spec)
        if json:
            print_json(description)
        else:
            print_description(make_console(), description)


@app.command()
def show(
    run: Annotated[
        str, typer.Argument(help="id or name of a run, the beginning of either, or 'last' for the newest")
    ] = "last",
    store: StoreFolder = DEFAULT_STORE,
    remote: RemoteStore = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the figures of a finished run, or the state of another run on the configured Prefect server."""
    with clear_errors(debug):
        from flows.cli.terminal import print_report, print_server_run, report_json
        from flows.results.tables import as_server_run
        from flows.server.runs import configured_server, find_server_run, task_rows
        from schemas.errors import SpecError
        from stages.store.runs import find_run
        from stages.store.stopped import is_called, list_stopped
        from stages.store.store import open_store_at

        root = store.expanduser().resolve()
        shared = open_store_at(store, remote) if remote else None  # a store is not made to look at it
        try:
            report = find_run(shared.runs_root() if shared else root, run)
        except SpecError:
            known = find_server_run(run) if configured_server(root) else None
            if known is not None:
                stages = task_rows(known["run_id"])
            elif stopped := [item for item in list_stopped(root) if is_called(item, run)]:
                known, stages = as_server_run(stopped[-1]), []
            else:
                raise
            if json:
                print_json({**known, "stages": stages})
            else:
                print_server_run(make_console(), known, stages)
            return
        if shared:
            shared.bring((report.package, report.published))
        if json:
            print_json(report_json(report, root))
        else:
            print_report(make_console(), report, root, techniques=True)


@app.command()
def runs(
    store: StoreFolder = DEFAULT_STORE,
    remote: RemoteStore = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """The finished runs in the store, and all others that the configured Prefect server knows, the newest
    last.
    """
    with clear_errors(debug):
        from flows.cli.terminal import print_runs, report_json
        from flows.results.tables import as_server_run
        from flows.server.runs import configured_server, server_runs
        from stages.store.runs import list_reports
        from stages.store.stopped import list_stopped
        from stages.store.store import open_store_at

        root = store.expanduser().resolve()
        shown = open_store_at(store, remote).runs_root() if remote else root
        known = {run.run_id: as_server_run(run) for run in list_stopped(root)}
        known |= {run["run_id"]: run for run in (server_runs() if configured_server(root) else ())}
        entries = []
        for report in list_reports(shown):
            figures = {key: value for key, value in report_json(report, root).items() if key != "report"}
            state = known.pop(report.run_id, {}).get("state") or (
                "Completed" if report.size.fits else "Failed"
            )
            entries.append({**figures, "started": report.created_at, "state": state})
        entries = sorted([*entries, *known.values()], key=lambda entry: entry["started"] or "~")
        if json:
            print_json(entries)
        else:
            print_runs(make_console(), entries)
