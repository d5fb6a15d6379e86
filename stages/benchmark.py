"""Benchmark: a finished model before the tasks of lm-evaluation-harness.

It is no stage of the chain: it takes the model of a finished run, and nothing takes its result.
"""

from pathlib import Path

from schemas.benchmark import Benchmark, BenchmarkedModel, BenchmarkSpec, OwnTasks
from schemas.extras import require_package
from stages.benchmarking.job import BenchmarkJob
from stages.processes.launch import launch_module
from stages.store.workspace import Workspace

CACHE = "cache/benchmarks"
"""Folder of the store for data sets, unless HF_HOME names another."""


def benchmark(
    spec: BenchmarkSpec, model: BenchmarkedModel, own_tasks: OwnTasks, work: Workspace
) -> Benchmark:
    """The harness's figures of `model`.

    Raises SpecError for tasks that cannot be asked and without lm-evaluation-harness, StageError for data
    that cannot be had.
    """
    require_harness()
    for item in own_tasks.files:
        work.read(item.source)  # as they were when the key was made
    cache = work.root / CACHE
    cache.mkdir(parents=True, exist_ok=True)
    job = BenchmarkJob(
        spec=spec,
        weights=model.weights,
        file=work.read(model.file),
        model=model.model,
        tokenizer=work.read(model.tokenizer),
        own_tasks=None if own_tasks.folder is None else Path(own_tasks.folder),
        cache=cache,
    )
    return launch_module(
        "stages.benchmarking.worker",
        job,
        Benchmark,
        work.out_dir,
        spec.compute,
        work.progress,
        work.runtime.stage_timeout_seconds,
    )


def require_harness() -> None:
    """Raises SpecError with the install command if lm-evaluation-harness is not installed."""
    require_package("lm_eval", "benchmark")
