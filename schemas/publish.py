"""Publishing: every record of a run in; report.html and the loss curve out."""

from pydantic import Field

from schemas.base import Schema
from schemas.files import FileRef, Provenance


class ReportedSetting(Schema):
    """A setting as the report prints it."""

    name: str
    value: str
    unit: str = ""


class PublishOptions(Schema):
    """What the user decides about the report."""

    title: str = Field("Fairway run", description="heading of the report")


class PublishSpec(PublishOptions):
    """The report's content beside the results; the pipeline fills it in, a report made by hand may go
    without.
    """

    run_name: str = Field("", description="name of the run")
    settings: tuple[ReportedSetting, ...] = Field((), description="every setting of the run")
    provenance: tuple[Provenance, ...] = Field((), description="how each result came about")


class PublishedReport(Schema):
    html: FileRef
    loss_curve: FileRef = Field(description="the loss curve alone, SVG")
