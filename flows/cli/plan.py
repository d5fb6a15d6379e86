"""Command `fairway plan`: what a run would do and take."""

from functools import partial
from typing import Annotated

import typer

from flows.cli.base import Device, Nodes, Overrides, Processes, Seed, app, option_overrides
from flows.cli.options import (
    TRAINING,
    FileArgument,
    LikeOption,
    OnDemand,
    StartPreset,
    Terminal,
    TextOption,
    with_run_options,
)


@app.command(cls=OnDemand)
@with_run_options(*TRAINING)
def plan(
    file: FileArgument = None,
    preset: StartPreset = None,
    like: LikeOption = None,
    text: TextOption = None,
    set_: Overrides = None,
    seed: Seed = None,
    processes: Processes = None,
    device: Device = None,
    nodes: Nodes = None,
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
    from flows.cli.chosen import chosen_plan, start_of_run
    from flows.cli.terminal import print_plan
    from flows.planning.run_plan import Asked, plan_of_run
    from stages.store.store import open_store

    start = start_of_run(file or [], preset, like, lambda: terminal.runs_root)
    wanted = chosen_plan(start, option_overrides(set_, seed, processes, device, nodes), text)
    asked = Asked(gpu_hour, None if gpu_memory is None else round(gpu_memory * 2**30), probe)
    found = plan_of_run(wanted, open_store(terminal.options), terminal.options, asked)
    terminal.tell(partial(found.as_json), partial(print_plan, plan=found))
