"""The command that quantizes an earlier run again: fairway requantize."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.base import (
    DEFAULT_STORE,
    Debug,
    Json,
    Overrides,
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
def requantize(
    run: Annotated[
        str,
        typer.Argument(
            help="id or name of a run, the beginning of either, or 'last' for the last successful one"
        ),
    ] = "last",
    bits: Annotated[
        list[str] | None, typer.Option(help="format of the matrices, int2 to int8; several are compared")
    ] = None,
    clip_grid: Annotated[
        list[str] | None, typer.Option(help="clip ratios with commas, as 1.0,0.95,0.9; several are compared")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="round_to_nearest, gptq_lite, reference, gptq or ecsq; several are compared"),
    ] = None,
    limit_bytes: Annotated[
        int | None, typer.Option(min=1, help="the best package (script and blob) of at most so many bytes")
    ] = None,
    set_: Overrides = None,
    at_once: Annotated[int, typer.Option(min=1, max=8, help="variants that run side by side")] = 2,
    store: StoreFolder = DEFAULT_STORE,
    retries: Retries = 3,
    timeout: Timeout = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Quantize and score the merged model of an earlier run again. Training is not run."""
    with clear_errors(debug):
        from flows.cli.terminal import print_comparison, report_json
        from stages.store.runs import find_run

        options = run_options_of(store, retries, timeout)
        root = Path(options.store)
        earlier = find_run(root, run, fitting=True)

        def call() -> Any:
            from flows.requantize import requantize as flow

            asked = {
                "bits": bits,
                "clip_grids": clip_grid,
                "methods": method,
                "limit_bytes": limit_bytes,
                "overrides": set_,
            }
            given = {name: value for name, value in asked.items() if value}
            return flow(earlier.run_id, at_once=at_once, options=options, return_state=True, **given)

        state = run_flow(call, options, debug)
        rows, reports = state.result(raise_on_failure=True)
        if json:
            print_json([report_json(report, root) for report in reports])
        else:
            print_comparison(make_console(), earlier.name, rows)
