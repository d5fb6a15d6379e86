"""Command `fairway frontier`."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.base import NewestRun, app
from flows.cli.options import ANY_STAGE, OnDemand, Terminal, with_run_options


@app.command(cls=OnDemand)
@with_run_options(*ANY_STAGE, existing=True)
def frontier(
    run: NewestRun = "last",
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
    *,
    terminal: Terminal,
) -> None:
    """Quantize a run's merged model in every way, score each package, and draw bits per byte against
    bytes. Training is not run.
    """
    from flows.cli.terminal import print_frontier
    from presets.quantizers import choose_schemes
    from schemas.errors import StageError
    from stages.store.runs import find_run

    root = terminal.store
    names = choose_schemes(scheme or ())  # refuses bad input before anything is started
    earlier = find_run(root, run)
    folder = (output or root / "frontiers" / earlier.name).expanduser().resolve()
    state = terminal.run("flows.frontier:frontier", earlier.run_id, names, str(folder))
    result = state.result(raise_on_failure=True)
    terminal.tell(
        lambda: {**result.model_dump(mode="json"), "folder": str(folder)},
        lambda console: print_frontier(console, result, folder),
    )
    if result.failed:
        raise StageError("\n".join(["these schemes failed; the same command retries them", *result.failed]))
