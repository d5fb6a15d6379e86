"""The command line: fairway run | requantize | validate-seeds | up | describe | show | runs.

Heavy imports stand inside the commands, so that --help answers at once.
"""

from typing import Annotated

import typer

import flows.cli_start  # noqa: F401  (its commands)
from flows.cli_base import (
    DEFAULT_STORE,
    Debug,
    Device,
    Json,
    Overrides,
    Processes,
    Seed,
    StoreFolder,
    app,
    clear_errors,
    make_console,
    option_overrides,
    print_json,
)


@app.command()
def describe(
    preset: Annotated[str, typer.Argument(help="smoke, demo, record or reference")],
    set_: Overrides = None,
    seed: Seed = None,
    processes: Processes = None,
    device: Device = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Every setting of a preset with its unit, parameters by part, tokens, steps and estimated bytes."""
    with clear_errors(debug):
        from flows.describe import describe_spec, print_description
        from flows.specs import resolve, run_label

        spec = resolve(preset, option_overrides(set_, seed, processes, device))
        told = describe_spec(preset, run_label(preset, spec), spec)
        if json:
            print_json(told)
        else:
            print_description(make_console(), told)


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="id or name of a run, the beginning of either, or 'last'")] = "last",
    store: StoreFolder = DEFAULT_STORE,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """The figures of a finished run."""
    with clear_errors(debug):
        from flows.runs import find_report
        from flows.terminal import print_report, report_json

        root = store.expanduser().resolve()
        report = find_report(root, run)
        if json:
            print_json(report_json(report, root))
        else:
            print_report(make_console(), report, root)


@app.command()
def runs(store: StoreFolder = DEFAULT_STORE, json: Json = False, debug: Debug = False) -> None:
    """The finished runs in the store, the newest last."""
    with clear_errors(debug):
        from flows.runs import list_reports
        from flows.terminal import print_runs, report_json

        root = store.expanduser().resolve()
        reports = list_reports(root)
        if json:
            print_json([{key: value for key, value in report_json(report, root).items() if key != "report"} for report in reports])
        else:
            print_runs(make_console(), reports)


def main() -> None:
    """Entry point of `fairway`."""
    app()


if __name__ == "__main__":
    main()
