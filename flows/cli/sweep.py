"""Command `fairway sweep`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.base import Overrides, app
from flows.cli.options import TRAINING, OnDemand, PresetOption, Terminal, with_run_options

if TYPE_CHECKING:
    from rich.console import Console

    from schemas.sweep import Sweep


@app.command(cls=OnDemand)
@with_run_options(*TRAINING)
def sweep(
    preset: PresetOption = "demo",
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUES",
            help="a setting that varies: LOW:HIGH, LOW:HIGH:log, LOW:HIGH:STEP or VALUE,VALUE,… "
            "(may be repeated); a+b=… gives two settings the same value",
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option(min=1, max=10_000, help="trials in all; more go on where fewer ended")
    ] = 20,
    objective: Annotated[
        str, typer.Option(help="what is to be low: val_bpb, bytes, or val_bpb,bytes for both")
    ] = "val_bpb",
    seed: Annotated[int, typer.Option(min=0, help="seed of the suggestions, not of the training")] = 0,
    confirm_seeds: Annotated[
        int,
        typer.Option(min=0, max=100, help="further seeds of base and best trial, for the test; 0: no test"),
    ] = 3,
    alpha: Annotated[
        float, typer.Option(min=0.0001, max=0.5, help="the best trial is announced if p is below it")
    ] = 0.05,
    set_: Overrides = None,
    csv: Annotated[Path | None, typer.Option(help="write the trials for spreadsheets and pandas")] = None,
    *,
    terminal: Terminal,
) -> None:
    """Search for better settings, each trial a run; announce the best one only if further seeds show it.

    The same command goes on after an interruption. --validate-every prunes trials that fall behind.
    """
    from flows.inputs.vary import plan_sweep

    # Refuses bad input before anything is started.
    plan_sweep(preset, set_ or (), vary or (), objective, confirm_seeds)
    state = terminal.run(
        "flows.sweep:sweep",
        preset,
        tuple(vary or ()),
        trials,
        objective,
        seed,
        confirm_seeds,
        alpha,
        tuple(set_ or ()),
    )
    found = state.result(raise_on_failure=True)
    if csv is not None:
        from flows.results.compared_page import write_file
        from flows.results.sweeps import csv_text

        write_file(csv, csv_text(found), "--csv")
    terminal.tell(lambda: found.model_dump(mode="json"), lambda console: _print(console, found))
    terminal.say_written(csv)


def _print(console: "Console", found: "Sweep") -> None:
    """The trials and the conclusions."""
    from flows.cli.terminal import rows_table, words
    from flows.results.sweeps import sweep_rows

    rows = sweep_rows(found)
    console.print(rows_table(f"Sweep {found.label}", rows, set(rows[0]) - {"state", "run", "note"}))
    for sentence in found.conclusions:
        console.print(words(sentence.replace("**", "")), soft_wrap=True)
