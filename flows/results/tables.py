"""Summary tables of a run as text, the same for terminal and Prefect artifacts.

`stages.report.rows` has the run's figures. It imports neither Prefect nor torch.
"""

from collections.abc import Sequence
from typing import Any

from schemas.evaluate import sliding_of
from schemas.files import Provenance
from schemas.introspect import describe_fields, number
from schemas.pipeline import PipelineReport, PipelineSpec
from schemas.publish import PublishSpec, ReportedSetting
from schemas.stopped import StoppedRun
from stages.report.rows import Table, result_table

Row = dict[str, str]

_MAX_VALUE_CHARACTERS = 60


def run_table(report: PipelineReport) -> Table:
    """The figures of a run under its name and date."""
    return result_table(
        report, f"{report.name}  ({report.created_at})", sliding_of(report.spec.evaluate.scoring)
    )


def stage_rows(report: PipelineReport) -> list[Row]:
    """Each stage and its seconds in this run; for a cached stage the seconds of its original run."""
    return [
        {
            "stage": stage.stage,
            "seconds": f"{stage.seconds:.1f}",
            "state": f"Cached (took {stage.computed_seconds:.1f} s)" if stage.cached else "Completed",
            "key": stage.key[:12],
        }
        for stage in report.stages
    ]


def reported(spec: PipelineSpec, label: str, provenance: Sequence[Provenance]) -> PublishSpec:
    """The spec of a run's report: all settings, and how each result came about."""
    settings = tuple(
        ReportedSetting(name=info.name, value=number(info.value), unit=info.unit)
        for info in describe_fields(spec)
    )
    return PublishSpec(
        title=spec.publish.title, run_name=label, settings=settings, provenance=tuple(provenance)
    )


def shorten(text: str) -> str:
    """`text` cut to the width of a table column."""
    return text if len(text) <= _MAX_VALUE_CHARACTERS else text[: _MAX_VALUE_CHARACTERS - 1] + "…"


def as_server_run(run: StoppedRun) -> dict[str, Any]:
    """A run that a rule ended, as the server tells of it, in plain JSON types."""
    return {
        "run_id": run.run_id,
        "name": run.name,
        "flow": "pipeline",
        "state": "Failed",
        "message": run.reason,
        "started": run.created_at,
    }
