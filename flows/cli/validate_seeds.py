"""The command that trains the next seeds: fairway validate-seeds."""

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
    *,
    terminal: Terminal,
) -> None:
    """Train the next seeds of a configuration, and say what all of them together show."""
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
    book, said = state.result(raise_on_failure=True)
    from flows.results.seeds import seed_rows  # needs Prefect

    terminal.tell(
        lambda: {"ledger": book.model_dump(mode="json"), "conclusions": said},
        lambda console: print_seeds(console, book.label, seed_rows(book), said),
    )
