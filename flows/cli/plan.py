"""Command `fairway plan`: what a run would do and take."""

from functools import partial
from typing import Annotated, Any

import typer

from flows.cli.base import app
from flows.cli.options import TRAINING, OnDemand, Terminal, with_run_choice, with_run_options


@app.command(cls=OnDemand)
@with_run_options(*TRAINING)
@with_run_choice
def plan(
    chosen: Any,
    gpu_hour: Annotated[
        float | None, typer.Option(min=0, metavar="MONEY", help="what one GPU costs for an hour")
    ] = None,
    gpu_memory: Annotated[
        float | None,
        typer.Option(min=0.1, metavar="GIB", help="memory of each GPU of the run, if not this machine's"),
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="measure a few real steps, and store the tokens of a small text")
    ] = False,
    *,
    terminal: Terminal,
) -> None:
    """Show what a run would do: stages that are stored and why others run, seconds, memory, disk, money."""
    from flows.cli.terminal import print_plan
    from flows.planning.run_plan import Asked, plan_of_run

    asked = Asked(gpu_hour, None if gpu_memory is None else round(gpu_memory * 2**30), probe)
    found = plan_of_run(chosen, terminal.opened, terminal.options, asked)
    terminal.tell(partial(found.as_json), partial(print_plan, plan=found))
