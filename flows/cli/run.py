"""Command `fairway run`: run the whole chain."""

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
def run(
    file: FileArgument = None,
    preset: StartPreset = None,
    like: LikeOption = None,
    text: TextOption = None,
    set_: Overrides = None,
    seed: Seed = None,
    processes: Processes = None,
    device: Device = None,
    nodes: Nodes = None,
    again: Annotated[
        list[str] | None,
        typer.Option(metavar="STAGE", help="compute this stage even if it is stored; may be repeated"),
    ] = None,
    *,
    terminal: Terminal,
) -> None:
    """Run the whole chain. Stages whose results are stored do not run again."""
    from flows.cli.chosen import chosen_plan, start_of_run
    from flows.cli.terminal import print_report, report_json
    from flows.inputs.specs import as_overrides, known_stages
    from flows.tracking.reporting import check_tracker
    from stages.processes.hosts import check_launcher
    from stages.store.runs import load_report

    # All of it refuses bad input before anything is started.
    start = start_of_run(file or [], preset, like, lambda: terminal.runs_root)
    plan = chosen_plan(start, option_overrides(set_, seed, processes, device, nodes), text)
    check_tracker(terminal.options.report_to)
    check_launcher(plan.spec.train.compute, terminal.options)
    stages = known_stages(again or (), "--again")
    state = terminal.run("flows.pipeline:pipeline", plan.preset, overrides=as_overrides(plan), again=stages)
    store = terminal.store
    report = load_report(store, str(state.state_details.flow_run_id))
    if report is not None:
        terminal.tell(partial(report_json, report, store), partial(print_report, report=report, store=store))
    state.result(raise_on_failure=True)
