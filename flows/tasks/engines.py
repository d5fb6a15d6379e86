"""Engines for the parts of a corpus: threads of this process, or the workers of a Dask or Ray cluster."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from schemas.errors import SpecError, on_one_line
from schemas.extras import require_package
from schemas.runtime import RunOptions


def check_engine(options: RunOptions) -> None:
    """Raise SpecError with the install command if the package of the engine is missing."""
    if is_apart(options):
        require_package(f"prefect_{options.engine.partition(':')[0]}", f"engine = {options.engine}")


def is_apart(options: RunOptions) -> bool:
    """Whether the engine works in other processes, perhaps of other machines."""
    return options.engine != "threads"


@contextmanager
def part_runner(options: RunOptions, at_once: int) -> Iterator[TaskRunner[Any]]:
    """The started engine; of this process's threads `at_once` work at a time.

    Raises SpecError if its cluster cannot be reached.
    """
    kind, _, address = options.engine.partition(":")
    if kind == "threads":
        threads: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=at_once)
        with threads:
            yield threads
        return
    runner: Any = _of_cluster(kind, address)
    try:
        runner.__enter__()
        if kind == "dask":
            runner.client.scheduler_info()  # it connects at first use
    except (OSError, RuntimeError, ValueError, ConnectionError) as error:
        raise SpecError(
            f"engine = {options.engine}: the cluster cannot be reached ({on_one_line(error)}). Give the "
            f"address of a running {'Dask scheduler' if kind == 'dask' else 'Ray cluster'}, or leave the "
            "option out"
        ) from error
    try:
        yield runner
    finally:
        runner.__exit__(*sys.exc_info())


def _of_cluster(kind: str, address: str) -> TaskRunner[Any]:
    if kind == "dask":
        from prefect_dask import DaskTaskRunner

        return DaskTaskRunner(address=address)
    from prefect_ray import RayTaskRunner

    return RayTaskRunner(address=address)
