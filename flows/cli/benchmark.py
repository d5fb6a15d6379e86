"""Command `fairway benchmark`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.base import app
from flows.cli.options import ANY_STAGE, OnDemand, Terminal, with_run_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from schemas.benchmark import Benchmark


@app.command(cls=OnDemand)
@with_run_options(*ANY_STAGE)
def benchmark(
    run: Annotated[
        str, typer.Argument(help="id or name of a run, the beginning of either, or 'last' for the newest")
    ] = "last",
    tasks: Annotated[
        list[str] | None,
        typer.Option(help="names of tasks, with commas or repeated; * stands for any part of a name"),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="first documents of each task; empty: all")] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(help="examples before each question; empty: as the task has it")
    ] = None,
    weights: Annotated[
        str, typer.Option(help="packed: the model of the package; merged: before quantization")
    ] = "packed",
    include_path: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="tasks of your own, as YAML files")
    ] = None,
    *,
    terminal: Terminal,
) -> None:
    """Measure a run's model by tasks of lm-evaluation-harness. Figures that are stored are only shown."""
    from flows.inputs.benchmarks import Asked
    from schemas.errors import SpecError
    from stages.benchmark import require_harness
    from stages.store.runs import find_run
    from stages.store.store import open_store

    if weights not in ("packed", "merged"):
        raise SpecError(f"--weights = {weights}: must be packed or merged")
    require_harness()
    store = open_store(terminal.options)
    earlier = find_run(store.runs_root(), run)
    asked = Asked(tasks or (), limit, num_fewshot, weights, include_path)  # type: ignore[arg-type]
    spec = asked.spec(earlier)  # refuses bad input before anything is started
    asked.inputs(earlier, store)
    folder = str(include_path.expanduser().resolve()) if include_path else ""
    given = (spec.tasks, earlier.run_id, limit, num_fewshot, weights, folder)
    found = terminal.run("flows.benchmark:benchmark", *given).result(raise_on_failure=True)
    terminal.tell(
        lambda: {"name": earlier.name, "run_id": earlier.run_id, **found.model_dump(mode="json")},
        lambda console: print_benchmarks(console, [found]),
    )


def print_benchmarks(console: Any, found: "Sequence[Benchmark]") -> None:
    """Print a table for each."""
    from flows.cli.terminal import drawn
    from flows.results.benchmark_table import benchmark_table

    for item in found:
        console.print(drawn(benchmark_table(item)))
