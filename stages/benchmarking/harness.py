"""lm-evaluation-harness: tasks by their names, and its results as records."""

import difflib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from schemas.benchmark import BenchmarkSpec, Metric, TaskScore
from schemas.errors import SpecError, StageError, on_one_line

log = logging.getLogger(__name__)

_LOCAL_BUILDERS = ("json", "csv", "text", "parquet", "arrow", "pandas", "xml")
"""Formats of local files that `datasets` reads; any other name is a data set of the hub."""


def harness_version() -> str:
    return version("lm_eval")


def load_tasks(names: Sequence[str], own: Path | None) -> list[Any]:
    """The tasks and groups of these names with their data, those of the folder `own` before the harness's.

    Raises SpecError for an unknown name, a task that cannot be asked here and a data file outside of `own`,
    StageError for data that cannot be had.
    """
    manager, matching = _index(names, own)
    loaded, seen = [], dict[str, str]()
    for name in dict.fromkeys(chain.from_iterable(matching.values())):
        for item, tasks in _load(manager, name):
            for task in tasks:
                if task.task_name in seen:
                    raise SpecError(
                        f"tasks = {name}: has the task {task.task_name}, as {seen[task.task_name]} has. Give "
                        "one of them"
                    )
                seen[task.task_name] = name
                _refuse_unfit(task, own)
            loaded.append(item)
    return loaded


def measure(model: LM, tasks: list[Any], spec: BenchmarkSpec) -> tuple[TaskScore, ...]:
    """The figures of each task and group, in the harness's order."""
    found = lm_eval.simple_evaluate(
        model,
        tasks=tasks,
        num_fewshot=spec.num_fewshot,
        limit=spec.limit,
        task_manager=TaskManager(include_defaults=False),  # the tasks are loaded; an index takes 15 s
        log_samples=False,
    )
    assert found is not None  # only ranks other than the first get none
    return tuple(_score(name, figures, found) for name, figures in found["results"].items())


def _index(names: Sequence[str], own: Path | None) -> tuple[TaskManager, dict[str, list[str]]]:
    """The index that knows all names, and what each name or pattern stands for."""
    manager = TaskManager(include_path=own and str(own), include_defaults=False)
    of_user = manager.all_tasks
    matching = {name: manager.match_tasks([name]) for name in names}
    if not all(matching.values()):
        manager = TaskManager(include_path=own and str(own))  # reads 15,000 files
        matching = {name: manager.match_tasks([name]) for name in names}
    for name, found in matching.items():
        if not found:
            raise SpecError(_unknown(name, manager, of_user, own))
    return manager, matching


def _unknown(name: str, manager: TaskManager, of_user: Sequence[str], own: Path | None) -> str:
    near = difflib.get_close_matches(name, manager.all_tasks, n=3, cutoff=0.6)
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    if own is None:
        where = "`lm_eval ls tasks` lists all; include_path names a folder with your own"
    else:
        where = f"The folder {own} has {', '.join(of_user[:10]) or 'no task that can be read'}"
    return f"tasks = {name}: lm-evaluation-harness {harness_version()} has no such task.{meant} {where}"


def _load(manager: TaskManager, name: str) -> Iterator[tuple[Any, list[Any]]]:
    """What the name stands for, each with its tasks: one task, one group, or the tasks of a tag."""
    try:
        loaded = manager.load([name])
    except ConnectionError as error:
        raise StageError(
            f"tasks = {name}: its data set cannot be had: {on_one_line(error)}. It comes from the Hugging "
            "Face hub, once. Run this with a network, or let HF_HOME name a folder that has it. A task of "
            "your own with local files (include_path) needs no network"
        ) from error
    except Exception as error:
        raise SpecError(
            f"tasks = {name}: cannot be loaded: {_reason(error)}. Choose another "
            "task, or mend its file or data"
        ) from error
    inside = set[str]()
    for group in loaded.get("groups", {}).values():
        inside |= {*group.child_names}
    for group in loaded.get("groups", {}).values():
        if group.name not in inside:
            tasks = group.get_all_tasks()
            inside |= {task.task_name for task in tasks}
            yield group, tasks
    yield from ((task, [task]) for key, task in loaded["tasks"].items() if key not in inside)


def _reason(error: Exception) -> str:
    if isinstance(error, StopIteration):
        return "its data set has no document"
    return f"{type(error).__name__}: {on_one_line(error)}"


def _refuse_unfit(task: Any, own: Path | None) -> None:
    """Raises SpecError for a task that runs what a model wrote, shows pictures, or reads a file outside."""
    if getattr(task, "UNSAFE_CODE", False):
        raise SpecError(
            f"tasks = {task.task_name}: runs programs that the model writes, which Fairway does not do. "
            "Leave it out"
        )
    if getattr(task, "MULTIMODAL", False):
        raise SpecError(f"tasks = {task.task_name}: asks about pictures or sound. Leave it out")
    if own is None or task.config.dataset_path not in _LOCAL_BUILDERS:
        return
    for given in _texts((task.config.dataset_kwargs or {}).get("data_files")):
        if "://" not in given and not (own / given).resolve().is_relative_to(own):
            raise SpecError(
                f"tasks = {task.task_name}: reads {given}, which lies outside of {own}. Move the file into "
                "that folder: it decides the result, so its content belongs into the key"
            )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _score(name: str, figures: Mapping[str, Any], found: Mapping[str, Any]) -> TaskScore:
    better = found["higher_is_better"].get(name) or {}
    counts = found["n-samples"].get(name) or {}
    told = found["versions"].get(name)
    metrics = []
    for key, value in figures.items():
        metric, comma, read_by = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        error = figures.get(f"{metric}_stderr,{read_by}")
        metrics.append(
            Metric(
                name=metric,
                filter=read_by,
                value=_finite(value),
                stderr=_finite(error) if isinstance(error, (int, float)) else None,
                higher_is_better=better.get(metric),
            )
        )
    return TaskScore(
        task=name,
        version="" if told is None else str(told),
        num_fewshot=found["n-shot"].get(name),
        num_documents=counts.get("effective"),
        num_available=counts.get("original"),
        metrics=tuple(metrics),
    )


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
