"""Command `fairway benchmark`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.base import NewestRun, app
from flows.cli.options import ANY_STAGE, OnDemand, Terminal, WeightsOption, weights_of, with_run_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from schemas.benchmark import Benchmark


@app.command(cls=OnDemand)
@with_run_options(*ANY_STAGE, existing=True)
def benchmark(
    run: NewestRun = "last",
    tasks: Annotated[
        list[str] | None,
        typer.Option(help="names of tasks, with commas or repeated; * stands for any part of a name"),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="first documents of each task; empty: all")] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(help="examples before each question; empty: as the task has it")
    ] = None,
    weights: WeightsOption = "packed",
    include_path: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="tasks of your own, as YAML files")
    ] = None,
    *,
    terminal: Terminal,
) -> None:
    """Measure a run's model by tasks of lm-evaluation-harness. Figures that are stored are only shown."""
    from flows.inputs.benchmarks import Asked
    from stages.benchmark import require_harness
    from stages.store.runs import find_run

    chosen = weights_of(weights)
    require_harness()
    earlier = find_run(terminal.runs_root, run)
    asked = Asked(tasks or (), limit, num_fewshot, chosen, include_path)
    spec = asked.spec(earlier)  # refuses bad input before anything is started
    asked.inputs(earlier, terminal.opened)
    folder = str(include_path.expanduser().resolve()) if include_path else ""
    given = (spec.tasks, earlier.run_id, limit, num_fewshot, chosen, folder)
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
