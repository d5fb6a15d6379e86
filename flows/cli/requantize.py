"""Command `fairway requantize`: quantize an earlier run again."""

from typing import Annotated

import typer

from flows.cli.base import Overrides, app
from flows.cli.options import ANY_STAGE, OnDemand, Terminal, with_run_options


@app.command(cls=OnDemand)
@with_run_options(*ANY_STAGE, existing=True)
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
        int | None, typer.Option(min=1, help="the best package (script and blob) within this many bytes")
    ] = None,
    set_: Overrides = None,
    at_once: Annotated[int, typer.Option(min=1, max=8, help="variants that run at the same time")] = 2,
    *,
    terminal: Terminal,
) -> None:
    """Quantize and score the merged model of an earlier run again. Training is not run."""
    from flows.cli.terminal import print_comparison, report_json
    from stages.store.runs import find_run

    root = terminal.store
    earlier = find_run(root, run, fitting=True)
    asked = {
        "bits": bits,
        "clip_grids": clip_grid,
        "methods": method,
        "limit_bytes": limit_bytes,
        "overrides": set_,
    }
    given = {name: value for name, value in asked.items() if value}
    state = terminal.run("flows.requantize:requantize", earlier.run_id, at_once=at_once, **given)
    rows, reports = state.result(raise_on_failure=True)
    terminal.tell(
        lambda: [report_json(report, root) for report in reports],
        lambda console: print_comparison(console, earlier.name, rows),
    )
