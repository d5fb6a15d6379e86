"""A run that a rule ended while it trained: what is left of it."""

from pydantic import NonNegativeFloat

from schemas.base import SCHEMA_VERSION, Schema, SchemaVersion
from schemas.files import FileRef
from schemas.pipeline import PipelineSpec, StageSummary


class StoppedRun(Schema):
    """What the report of a finished run holds too, as far as the run went, and why it ended."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    run_id: str
    name: str
    preset: str
    created_at: str
    seconds: NonNegativeFloat
    reason: str
    spec: PipelineSpec
    stages: tuple[StageSummary, ...]
    metrics: FileRef
