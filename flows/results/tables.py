"""Summary tables of a run as text, the same for terminal and Prefect artifacts.

`stages.report.rows` has the run's figures. It imports neither Prefect nor torch.
"""

from typing import Any

from schemas.pipeline import PipelineReport
from schemas.stopped import StoppedRun
from stages.report.rows import Table, result_table

Row = dict[str, str]

_MAX_VALUE_CHARACTERS = 60


def run_table(report: PipelineReport) -> Table:
    """The figures of a run under its name and date."""
    stride = report.spec.evaluate.scoring.stride
    return result_table(report, f"{report.name}  ({report.created_at})", str(stride))


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
