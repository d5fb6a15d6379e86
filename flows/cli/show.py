"""Read-only commands: fairway describe | show."""

from typing import Annotated

import typer

from flows.cli.base import (
    DEFAULT_STORE,
    Debug,
    Device,
    Json,
    NewestRun,
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
from flows.cli.options import PRESETS_HELP, OnDemand, TextOption


@app.command(cls=OnDemand)
def describe(
    preset: Annotated[str, typer.Argument(help=PRESETS_HELP)],
    text: TextOption = None,
    set_: Overrides = None,
    seed: Seed = None,
    processes: Processes = None,
    device: Device = None,
    toml: Annotated[bool, typer.Option("--toml", help="write a run file, for `fairway run FILE`")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the settings of a preset or run file with units, the parameters by part, tokens, steps and
    estimated bytes.
    """
    with clear_errors(debug):
        from flows.cli.chosen import chosen_plan, start_of_either
        from flows.cli.description import describe_spec, print_description
        from flows.inputs.specs import run_file_of

        plan = chosen_plan(start_of_either(preset), option_overrides(set_, seed, processes, device), text)
        if toml:
            about = f"The run {plan.label}. Remove the # of a setting to change it, then: fairway run FILE"
            typer.echo(run_file_of(plan, about, with_others=True), nl=False)
            return
        description = describe_spec(plan.preset, plan.label, plan.spec)
        if json:
            print_json(description)
        else:
            print_description(make_console(), description)


@app.command()
def show(
    run: NewestRun = "last",
    store: StoreFolder = DEFAULT_STORE,
    remote: RemoteStore = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the figures of a finished run, or the state of another run on the configured Prefect server."""
    with clear_errors(debug):
        from flows.cli.benchmark import print_benchmarks
        from flows.cli.terminal import print_notes, print_report, print_server_run, report_json
        from flows.results.tables import as_server_run
        from flows.server.runs import configured_server, find_server_run, task_rows
        from schemas.errors import SpecError
        from stages.store.benchmarks import benchmarks_of
        from stages.store.notes import notes_of
        from stages.store.runs import find_run
        from stages.store.stopped import is_called, list_stopped
        from stages.store.store import awaits_store, open_existing_store

        awaits_store(store, remote)  # refuses what is no store
        root = store.expanduser().resolve()
        shared = open_existing_store(store, remote) if remote else None  # a store is not made to look at it
        place = shared.runs_root() if shared else root
        try:
            report = find_run(place, run)
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
        notes = notes_of(place, [report.run_id])[report.run_id]
        measured = benchmarks_of(root, report)
        if json:
            benchmarks = [item.model_dump(mode="json") for item in measured]
            print_json(report_json(report, root) | notes.as_json() | {"benchmarks": benchmarks})
        else:
            print_report(make_console(), report, root, techniques=True)
            print_benchmarks(make_console(), measured)
            print_notes(make_console(), report, notes)
