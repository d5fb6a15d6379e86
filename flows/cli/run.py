"""The command that runs the whole chain: fairway run."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.base import (
    DEFAULT_CHECKPOINT_EVERY,
    DEFAULT_STORE,
    CheckpointEvery,
    Debug,
    Device,
    Json,
    Overrides,
    Processes,
    Retries,
    Seed,
    StoreFolder,
    Timeout,
    app,
    clear_errors,
    make_console,
    option_overrides,
    print_json,
    run_flow,
    run_options_of,
)


@app.command()
def run(
    preset: Annotated[str, typer.Option(help="smoke, demo, medium, record or reference")] = "demo",
    set_: Overrides = None,
    seed: Seed = None,
    processes: Processes = None,
    device: Device = None,
    store: StoreFolder = DEFAULT_STORE,
    retries: Retries = 3,
    timeout: Timeout = None,
    checkpoint_every: CheckpointEvery = DEFAULT_CHECKPOINT_EVERY,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Run the whole chain. What the store already holds is not made again."""
    with clear_errors(debug):
        from flows.cli.terminal import print_report, report_json
        from flows.inputs.specs import resolve
        from stages.store.runs import load_report

        overrides = option_overrides(set_, seed, processes, device)
        resolve(preset, overrides)  # refuses bad input before anything is started
        options = run_options_of(store, retries, timeout, checkpoint_every)

        def call() -> Any:
            from flows.pipeline import pipeline

            return pipeline(preset, overrides=overrides, options=options, return_state=True)

        state = run_flow(call, options, debug)
        report = load_report(Path(options.store), str(state.state_details.flow_run_id))
        if report is not None and json:
            print_json(report_json(report, Path(options.store)))
        elif report is not None:
            print_report(make_console(), report, Path(options.store))
        state.result(raise_on_failure=True)
