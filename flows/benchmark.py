"""A run's model before the tasks of lm-evaluation-harness.

    fairway benchmark last --tasks hellaswag,lambada_openai --limit 200

Nothing of the run is computed again. The result is stored as that of a stage, and belongs to every run with
this model.
"""

import logging
from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.runtime import flow_run
from pydantic import Field

from flows.inputs.benchmarks import Asked
from flows.inputs.form import Options, number_field, with_empty_fields
from flows.inputs.specs import run_options
from flows.results.benchmark_table import benchmark_table
from flows.tasks.showing import only_shown
from flows.tasks.stage_task import stage_runner
from flows.tasks.tries import begin_try
from schemas.benchmark import BENCHMARK, Benchmark, TaskName
from schemas.sample import Weights
from stages.report.rows import markdown_table
from stages.store.runs import find_run, named_after
from stages.store.store import open_store

log = logging.getLogger(__name__)


def _run_name() -> str:
    given = flow_run.parameters
    return named_after(open_store(run_options(given["options"])).runs_root(), given["run"], BENCHMARK)


@with_empty_fields
@flow(name=BENCHMARK, flow_run_name=_run_name, persist_result=False)
def benchmark(
    tasks: tuple[TaskName, ...],
    run: str = "last",
    limit: Annotated[int | None, Field(ge=1), number_field("integer", minimum=1)] = None,
    num_fewshot: Annotated[int | None, Field(ge=0), number_field("integer", minimum=0)] = None,
    weights: Weights = "packed",
    include_path: str = "",
    options: Options = None,
) -> Benchmark:
    """Measure the model of a run by tasks of lm-evaluation-harness.

    Args:
        tasks: Names of tasks, groups or tags, as hellaswag or lambada_openai; * stands for any part of a
            name.
        run: The run: its name or id, the beginning of either, or "last" for the newest.
        limit: Documents of each task, the first ones. Empty: all.
        num_fewshot: Examples before each question. Empty: as the task has it.
        weights: packed: the compressed model that the package contains. merged: before quantization.
        include_path: Folder of the worker's machine with tasks of your own, as YAML files.
        options: Where and how the stage runs; never changes a result.
    """
    options = begin_try(options)
    stage = stage_runner(options, run, [])
    earlier = find_run(stage.store.runs_root(), run)
    folder = Path(include_path) if include_path else None
    asked = Asked(tasks, limit, num_fewshot, weights, folder)
    found: Benchmark = stage(BENCHMARK, asked.spec(earlier), **asked.inputs(earlier, stage.store))
    log.info("%s: measured by %s", earlier.name, ", ".join(score.task for score in found.scores))
    with only_shown("the figures of the benchmark"):
        _publish(earlier.name, found)
    return found


def _publish(name: str, found: Benchmark) -> None:
    table = benchmark_table(found)
    lines = [f"# {name}", "", table.title, "", markdown_table(table.columns, table.rows)]
    create_markdown_artifact(key="benchmark", markdown="\n".join(lines), description=table.title)
    create_table_artifact(key="benchmark-figures", table=table.dicts(), description=f"benchmarks of {name}")
