"""What `audit` hands to the process that measures; that hands an `Audit` back."""

from pathlib import Path

from schemas.base import Schema
from schemas.pipeline import PipelineSpec
from schemas.results import RunResults
from schemas.runtime import RunOptions


class AuditJob(Schema):
    """Measure the run of `spec` on its `results`; their files lie below `root`, the store."""

    spec: PipelineSpec
    results: RunResults
    root: Path
    folder: Path
    runtime: RunOptions
