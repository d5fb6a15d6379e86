"""Command `fairway run`: run the whole chain."""

from functools import partial
from typing import Annotated, Any

import typer

from flows.cli.base import app
from flows.cli.options import TRAINING, OnDemand, Terminal, with_run_choice, with_run_options


@app.command(cls=OnDemand)
@with_run_options(*TRAINING)
@with_run_choice
def run(
    chosen: Any,
    again: Annotated[
        list[str] | None,
        typer.Option(metavar="STAGE", help="compute this stage even if it is stored; may be repeated"),
    ] = None,
    *,
    terminal: Terminal,
) -> None:
    """Run the whole chain. Stages whose results are stored do not run again."""
    from flows.cli.terminal import print_report, report_json
    from flows.inputs.specs import as_overrides, known_stages
    from stages.store.runs import load_report

    stages = known_stages(again or (), "--again")
    state = terminal.run(
        "flows.pipeline:pipeline", chosen.preset, overrides=as_overrides(chosen), again=stages
    )
    store = terminal.store
    report = load_report(store, str(state.state_details.flow_run_id))
    if report is not None:
        terminal.tell(partial(report_json, report, store), partial(print_report, report=report, store=store))
    state.result(raise_on_failure=True)
