"""Command `fairway run`: run the whole chain."""

from functools import partial

from flows.cli.base import Device, Nodes, Overrides, Processes, Seed, app, option_overrides
from flows.cli.options import TRAINING, OnDemand, PresetOption, Terminal, with_run_options


@app.command(cls=OnDemand)
@with_run_options(*TRAINING)
def run(
    preset: PresetOption = "demo",
    set_: Overrides = None,
    seed: Seed = None,
    processes: Processes = None,
    device: Device = None,
    nodes: Nodes = None,
    *,
    terminal: Terminal,
) -> None:
    """Run the whole chain. Stages whose results are stored do not run again."""
    from flows.cli.terminal import print_report, report_json
    from flows.inputs.specs import resolve
    from stages.processes.hosts import check_launcher
    from stages.store.runs import load_report

    overrides = option_overrides(set_, seed, processes, device, nodes)
    spec = resolve(preset, overrides)  # refuses bad input before anything is started
    check_launcher(spec.train.compute, terminal.options)
    state = terminal.run("flows.pipeline:pipeline", preset, overrides=overrides)
    store = terminal.store
    report = load_report(store, str(state.state_details.flow_run_id))
    if report is not None:
        terminal.tell(partial(report_json, report, store), partial(print_report, report=report, store=store))
    state.result(raise_on_failure=True)
