"""The command fairway frontier."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.base import (
    DEFAULT_STORE,
    Debug,
    Json,
    Retries,
    StoreFolder,
    Timeout,
    app,
    clear_errors,
    make_console,
    print_json,
    run_flow,
    run_options_of,
)


@app.command()
def frontier(
    run: Annotated[
        str, typer.Argument(help="id or name of a run, the beginning of either, or 'last' for the newest")
    ] = "last",
    scheme: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "METHOD or METHOD:SETTING, as ecsq, gptq:int5, ecsq:0.002 or reference; may be "
                "repeated. Empty: twelve of all"
            )
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="folder for table and plots; empty: <store>/frontiers/<run's name>")
    ] = None,
    store: StoreFolder = DEFAULT_STORE,
    retries: Retries = 3,
    timeout: Timeout = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Quantize a run's merged model in every way, score each package, and draw bits per byte against
    bytes. Training is not run.
    """
    with clear_errors(debug):
        from flows.cli.terminal import print_frontier
        from presets.quantizers import choose_schemes
        from schemas.errors import StageError
        from stages.store.runs import find_run

        options = run_options_of(store, retries, timeout)
        root = Path(options.store)
        names = choose_schemes(scheme or ())  # refuses bad input before anything is started
        earlier = find_run(root, run)
        folder = (output or root / "frontiers" / earlier.name).expanduser().resolve()

        def call() -> Any:
            from flows.frontier import frontier as flow

            return flow(earlier.run_id, names, str(folder), options, return_state=True)

        found = run_flow(call, options, debug).result(raise_on_failure=True)
        if json:
            print_json({**found.model_dump(mode="json"), "folder": str(folder)})
        else:
            print_frontier(make_console(), found, folder)
        if found.failed:
            raise StageError(
                "\n".join(["these have no point; the same command tries them again", *found.failed])
            )
