"""The command that trains the next seeds: fairway validate-seeds."""

from typing import Annotated, Any

import typer

from flows.cli.base import (
    DEFAULT_CHECKPOINT_EVERY,
    DEFAULT_STORE,
    CheckpointEvery,
    Debug,
    Json,
    Overrides,
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
def validate_seeds(
    preset: Annotated[str, typer.Option(help="smoke, demo, medium, record or reference")] = "demo",
    set_: Overrides = None,
    ledger: Annotated[str, typer.Option(help="name of the ledger; empty: the preset's")] = "",
    new: Annotated[
        int, typer.Option(min=0, max=100, help="new seeds to train now; failed ones are tried again besides")
    ] = 1,
    max_seeds: Annotated[
        int, typer.Option(min=2, max=1000, help="seeds at most; declared before the first one and then fixed")
    ] = 10,
    first_seed: Annotated[int, typer.Option(min=0, help="the first seed; the next ones follow it")] = 1,
    mark: Annotated[float | None, typer.Option(help="the loss to beat, in nats a token")] = None,
    against: Annotated[str, typer.Option(help="a ledger to beat instead, by the beginning of its name")] = "",
    margin: Annotated[float, typer.Option(min=0, help="nats a token by which it has to be beaten")] = 0.005,
    alpha: Annotated[float, typer.Option(help="the p below which it counts as beaten")] = 0.01,
    recheck_seed: Annotated[
        int | None, typer.Option(min=0, help="train this seed again instead and compare, to the last bit")
    ] = None,
    store: StoreFolder = DEFAULT_STORE,
    retries: Retries = 3,
    timeout: Timeout = None,
    checkpoint_every: CheckpointEvery = DEFAULT_CHECKPOINT_EVERY,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train the next seeds of a configuration, and say what all of them together show."""
    with clear_errors(debug):
        from flows.inputs.specs import resolve

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
            from flows.cli.terminal import print_seeds
            from flows.results.seeds import seed_rows

            print_seeds(make_console(), book.label, seed_rows(book), said)
