"""Entry point of the command line: `fairway --help` lists the commands.

Heavy imports are inside the commands, so that --help answers at once.
"""

import sys

import typer

# Their commands; --help lists them in this order.
# isort: off
import flows.cli.ablate
import flows.cli.frontier
import flows.cli.run
import flows.cli.schema
import flows.cli.plan
import flows.cli.requantize
import flows.cli.sweep
import flows.cli.sample
import flows.cli.benchmark
import flows.cli.up
import flows.cli.validate_seeds
import flows.cli.store
import flows.cli.submission
import flows.cli.export_hf
import flows.cli.compare
import flows.cli.watch
import flows.cli.show
import flows.cli.runs
import flows.cli.notes  # noqa: F401
from flows.cli.base import app

# isort: on


def main() -> None:
    """Run `fairway`.

    Status 2 for an environment in which nothing works, 141 if the reader of the output has gone.
    """
    from schemas.errors import SpecError
    from stages.processes.own_process import standard_streams, surroundings

    standard_streams()
    try:
        surroundings()
    except SpecError as error:
        typer.echo(f"fairway: {error}", err=True)
        sys.exit(2)
    try:
        app()
    finally:
        sys.stdout.flush()
