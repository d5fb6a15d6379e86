"""Command `fairway ablate`."""

from typing import Annotated

import typer

from flows.cli.base import NewestRun, app
from flows.cli.options import TRAINING, OnDemand, Terminal, with_run_options


@app.command(cls=OnDemand)
@with_run_options(*TRAINING, existing=True)
def ablate(
    run: NewestRun = "last",
    off: Annotated[
        list[str] | None,
        typer.Option(
            help="techniques with commas, a variant each; xsa+ve leaves out both at once; all: every one"
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, max=100, help="seeds of each variant, the run's own first")
    ] = 3,
    *,
    terminal: Terminal,
) -> None:
    """Train a run's configuration without some of its techniques, with the same seeds: what each is
    worth, with its interval.

    Without --off it lists the techniques and trains nothing.
    """
    from flows.cli.terminal import print_ablation, report_json, techniques_table
    from schemas.techniques import TECHNIQUES
    from stages.store.runs import find_run

    root = terminal.store
    earlier = find_run(root, run)
    keys = tuple(key.strip() for group in off or () for key in group.split(",") if key.strip())
    if not keys:
        terminal.tell(
            lambda: [
                {"key": technique.key, "title": technique.title, "on": technique.is_on(earlier.spec)}
                for technique in TECHNIQUES
            ],
            lambda console: console.print(techniques_table(earlier.spec)),
        )
        return

    state = terminal.run("flows.ablate:ablate", earlier.run_id, keys, seeds)
    rows, reports = state.result(raise_on_failure=True)
    terminal.tell(
        lambda: {"rows": rows, "runs": [report_json(report, root) for report in reports]},
        lambda console: print_ablation(console, earlier.name, rows),
    )
