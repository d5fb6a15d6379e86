"""Command `fairway validate-seeds`: train the next seeds."""

from typing import Annotated

import typer

from flows.cli.base import Overrides, app
from flows.cli.options import TRAINING, OnDemand, PresetOption, Terminal, with_run_options


@app.command(cls=OnDemand)
@with_run_options(*TRAINING)
def validate_seeds(
    preset: PresetOption = "demo",
    set_: Overrides = None,
    ledger: Annotated[str, typer.Option(help="name of the ledger; empty: the preset's")] = "",
    new: Annotated[
        int, typer.Option(min=0, max=100, help="new seeds to train now; failed ones are retried too")
    ] = 1,
    max_seeds: Annotated[
        int, typer.Option(min=2, max=1000, help="most seeds of the ledger; its first run fixes this")
    ] = 10,
    first_seed: Annotated[int, typer.Option(min=0, help="the first seed; the next ones follow it")] = 1,
    mark: Annotated[float | None, typer.Option(help="the loss to beat, in nats a token")] = None,
    against: Annotated[str, typer.Option(help="a ledger to beat instead, by the beginning of its name")] = "",
    margin: Annotated[float, typer.Option(min=0, help="margin to beat it by, in nats a token")] = 0.005,
    alpha: Annotated[float, typer.Option(help="significance level: beaten if p is below it")] = 0.01,
    recheck_seed: Annotated[
        int | None, typer.Option(min=0, help="only train this seed again, and compare every figure exactly")
    ] = None,
    *,
    terminal: Terminal,
) -> None:
    """Train the next seeds of a configuration, and print the statistics of all its seeds."""
    from flows.cli.terminal import print_seeds
    from flows.inputs.specs import resolve

    resolve(preset, set_ or [])
    state = terminal.run(
        "flows.seed_validation:seed_validation",
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
    )
    book, conclusions = state.result(raise_on_failure=True)
    from flows.results.seeds import seed_rows  # needs Prefect

    terminal.tell(
        lambda: {"ledger": book.model_dump(mode="json"), "conclusions": conclusions},
        lambda console: print_seeds(console, book.label, seed_rows(book), conclusions),
    )
