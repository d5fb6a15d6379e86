"""The command fairway ablate."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.base import (
    DEFAULT_CHECKPOINT_EVERY,
    DEFAULT_STORE,
    CheckpointEvery,
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
def ablate(
    run: Annotated[
        str, typer.Argument(help="id or name of a run, the beginning of either, or 'last' for the newest")
    ] = "last",
    off: Annotated[
        list[str] | None,
        typer.Option(
            help="techniques with commas, a variant each; xsa+ve leaves out both at once; all: every one"
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, max=100, help="seeds of each variant, the run's own first")
    ] = 3,
    store: StoreFolder = DEFAULT_STORE,
    retries: Retries = 3,
    timeout: Timeout = None,
    checkpoint_every: CheckpointEvery = DEFAULT_CHECKPOINT_EVERY,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a run's configuration without some of its techniques, with the same seeds: what each is
    worth, with its interval.

    Without --off it lists the techniques and trains nothing.
    """
    with clear_errors(debug):
        from flows.cli.terminal import print_ablation, report_json, techniques_table
        from flows.results.ablation import plan_variants
        from schemas.techniques import TECHNIQUES
        from stages.store.runs import find_run

        options = run_options_of(store, retries, timeout, checkpoint_every)
        root = Path(options.store)
        earlier = find_run(root, run)
        keys = tuple(key.strip() for group in off or () for key in group.split(",") if key.strip())
        if not keys:
            if json:
                print_json(
                    [
                        {"key": item.key, "title": item.title, "on": item.is_on(earlier.spec)}
                        for item in TECHNIQUES
                    ]
                )
            else:
                make_console().print(techniques_table(earlier.spec))
            return

        plan_variants(earlier.spec, keys)  # refuses bad input before anything is started

        def call() -> Any:
            from flows.ablate import ablate as flow

            return flow(earlier.run_id, keys, seeds, options, return_state=True)

        rows, reports = run_flow(call, options, debug).result(raise_on_failure=True)
        if json:
            print_json({"rows": rows, "runs": [report_json(report, root) for report in reports]})
        else:
            print_ablation(make_console(), earlier.name, rows)
