"""Commands that start something: fairway run | requantize | validate-seeds | up."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli_base import (
    DEFAULT_CHECKPOINT_EVERY,
    DEFAULT_STORE,
    CheckpointEvery,
    Debug,
    Device,
    Json,
    Overrides,
    Processes,
    Retries,
    Seed,
    StoreFolder,
    Timeout,
    app,
    clear_errors,
    make_console,
    option_overrides,
    print_json,
    run_flow,
    run_options_of,
)


@app.command()
def run(
    preset: Annotated[str, typer.Option(help="smoke, demo, medium, record or reference")] = "demo",
    set_: Overrides = None,
    seed: Seed = None,
    processes: Processes = None,
    device: Device = None,
    store: StoreFolder = DEFAULT_STORE,
    retries: Retries = 3,
    timeout: Timeout = None,
    checkpoint_every: CheckpointEvery = DEFAULT_CHECKPOINT_EVERY,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Run the whole chain. What the store already holds is not made again."""
    with clear_errors(debug):
        from flows.runs import load_report
        from flows.specs import resolve
        from flows.terminal import print_report, report_json

        overrides = option_overrides(set_, seed, processes, device)
        resolve(preset, overrides)  # refuses bad input before anything is started
        options = run_options_of(store, retries, timeout, checkpoint_every)

        def call() -> Any:
            from flows.pipeline import pipeline

            return pipeline(preset, overrides=overrides, options=options, return_state=True)

        state = run_flow(call, options, debug)
        report = load_report(Path(options.store), str(state.state_details.flow_run_id))
        if report is not None and json:
            print_json(report_json(report, Path(options.store)))
        elif report is not None:
            print_report(make_console(), report, Path(options.store))
        state.result(raise_on_failure=True)


@app.command()
def requantize(
    run: Annotated[
        str, typer.Argument(help="id or name of a run, the beginning of either, or 'last' for the last successful one")
    ] = "last",
    bits: Annotated[list[str] | None, typer.Option(help="format of the matrices, int2 to int8; several are compared")] = None,
    clip_grid: Annotated[list[str] | None, typer.Option(help="clip ratios with commas, as 1.0,0.95,0.9; several are compared")] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="round_to_nearest, gptq_lite, reference, gptq or ecsq; several are compared")
    ] = None,
    limit_bytes: Annotated[int | None, typer.Option(min=1, help="the best package (script and blob) of at most so many bytes")] = None,
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
        from flows.runs import find_run
        from flows.terminal import print_comparison, report_json

        options = run_options_of(store, retries, timeout)
        root = Path(options.store)
        earlier = find_run(root, run, fitting=True)

        def call() -> Any:
            from flows.requantize import requantize as flow

            asked = {"bits": bits, "clip_grids": clip_grid, "methods": method, "limit_bytes": limit_bytes, "overrides": set_}
            given = {name: value for name, value in asked.items() if value}
            return flow(earlier.run_id, at_once=at_once, options=options, return_state=True, **given)

        state = run_flow(call, options, debug)
        rows, reports = state.result(raise_on_failure=True)
        if json:
            print_json([report_json(report, root) for report in reports])
        else:
            print_comparison(make_console(), earlier.name, rows)


@app.command()
def up(
    port: Annotated[
        int, typer.Option(min=1, max=65_534, help="port of the Prefect server on the loopback interface; the next is for reports")
    ] = 4200,
    heartbeat_seconds: Annotated[
        int, typer.Option(min=30, max=86_400, help="seconds between a run's heartbeats; after three it counts as crashed")
    ] = 180,
    store: StoreFolder = DEFAULT_STORE,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Start the Prefect server, deployments and a worker, and say where the browser finds them. Ctrl-C ends all of it."""
    with clear_errors(debug):
        from rich.console import Console

        from flows.terminal import log_to
        from flows.up import everything_up, one_interrupt, wait_for_the_end
        from stages.printable import printable
        from stages.store import Store

        root = Store(store).root
        messages: Console = make_console(stderr=True)
        one_interrupt()
        try:
            with log_to(messages), everything_up(root, port, heartbeat_seconds) as url:
                address = url.removesuffix("/api")
                if json:
                    print_json({"ui": address, "api": url, "store": str(root)})
                    sys.stdout.flush()
                else:
                    typer.echo(f"ready: {address}   (store {printable(str(root))}; Ctrl-C ends server, worker and runs)")
                    typer.echo(f"for runs from a terminal: export PREFECT_API_URL={url}")
                wait_for_the_end()
        except KeyboardInterrupt:
            pass
        typer.echo("stopped", err=True)


@app.command()
def validate_seeds(
    preset: Annotated[str, typer.Option(help="smoke, demo, medium, record or reference")] = "demo",
    set_: Overrides = None,
    ledger: Annotated[str, typer.Option(help="name of the ledger; empty: the preset's")] = "",
    new: Annotated[int, typer.Option(min=0, max=100, help="new seeds to train now; failed ones are tried again besides")] = 1,
    max_seeds: Annotated[int, typer.Option(min=2, max=1000, help="seeds at most; declared before the first one and then fixed")] = 10,
    first_seed: Annotated[int, typer.Option(min=0, help="the first seed; the next ones follow it")] = 1,
    mark: Annotated[float | None, typer.Option(help="the loss to beat, in nats a token")] = None,
    against: Annotated[str, typer.Option(help="a ledger to beat instead, by the beginning of its name")] = "",
    margin: Annotated[float, typer.Option(min=0, help="nats a token by which it has to be beaten")] = 0.005,
    alpha: Annotated[float, typer.Option(help="the p below which it counts as beaten")] = 0.01,
    recheck_seed: Annotated[int | None, typer.Option(min=0, help="train this seed again instead and compare, to the last bit")] = None,
    store: StoreFolder = DEFAULT_STORE,
    retries: Retries = 3,
    timeout: Timeout = None,
    checkpoint_every: CheckpointEvery = DEFAULT_CHECKPOINT_EVERY,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train the next seeds of a configuration, and say what all of them together show."""
    with clear_errors(debug):
        from flows.specs import resolve

        resolve(preset, set_ or [])
        options = run_options_of(store, retries, timeout, checkpoint_every)

        def call() -> Any:
            from flows.seed_validation import seed_validation

            return seed_validation(
                preset,
                tuple(set_ or ()),
                ledger,
                new_seeds_per_run=new,
                max_seeds=max_seeds,
                first_seed=first_seed,
                mark_nats=mark,
                against=against,
                margin_nats=margin,
                alpha=alpha,
                recheck_seed=recheck_seed,
                options=options,
                return_state=True,
            )

        book, said = run_flow(call, options, debug).result(raise_on_failure=True)
        if json:
            print_json({"ledger": book.model_dump(mode="json"), "conclusions": said})
        else:
            from flows.seed_report import seed_rows
            from flows.terminal import print_seeds

            print_seeds(make_console(), book.label, seed_rows(book), said)
