"""Figures of lm-evaluation-harness as a table, the same for terminal, report and Prefect artifacts.

Imports neither Prefect nor torch.
"""

from schemas.benchmark import Benchmark, Metric, TaskScore
from stages.report.rows import Table

COLUMNS = ("task", "shots", "documents", "metric", "value", "±", "better")


def benchmark_table(found: Benchmark) -> Table:
    """A row for each figure."""
    rows = tuple((*_head(score), *_figure(metric)) for score in found.scores for metric in score.metrics)
    title = f"Benchmarks, {found.weights} weights, lm-evaluation-harness {found.harness}"
    return Table(title, COLUMNS, rows, ("task", "metric", "better"))


def _head(score: TaskScore) -> tuple[str, str, str]:
    shots = "–" if score.num_fewshot is None else str(score.num_fewshot)
    if score.num_documents is None:
        return score.task, shots, "–"
    part = "" if score.num_documents == score.num_available else f" of {score.num_available:,}"
    return score.task, shots, f"{score.num_documents:,}{part}"


def _figure(metric: Metric) -> tuple[str, str, str, str]:
    name = metric.name if metric.filter == "none" else f"{metric.name}, {metric.filter}"
    better = {True: "higher", False: "lower", None: ""}[metric.higher_is_better]
    return name, _number(metric.value), "" if metric.stderr is None else _number(metric.stderr), better


def _number(value: float | None) -> str:
    if value is None:
        return "not finite"
    return f"{value:.5f}" if abs(value) < 1_000 else f"{value:,.0f}"
