"""Report of a finished run: the report record, and Prefect's artifacts (tables and the loss curve)."""

import base64
import os
from collections.abc import Sequence
from pathlib import Path

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from flows.results.tables import reported, run_table, stage_rows
from schemas.check_size import SizeReport
from schemas.pipeline import PipelineReport, PipelineSpec, StageSummary
from schemas.publish import PublishSpec
from schemas.quantize import QuantizeSpec
from stages.execution.runner import StageOutcome
from stages.report.rows import (
    audit_table,
    budget_table,
    gap_table,
    markdown_table,
    score_table,
    tensor_table,
)


def publish_spec(spec: PipelineSpec, label: str, outcomes: Sequence[StageOutcome]) -> PublishSpec:
    """The report's spec: the run's settings and the provenance of each result."""
    return reported(spec, label, [outcome.record.provenance for outcome in outcomes])


def stage_summaries(outcomes: Sequence[StageOutcome]) -> tuple[StageSummary, ...]:
    """Key and seconds of each stage of a run."""
    return tuple(
        StageSummary(
            stage=outcome.record.provenance.stage,
            key=outcome.record.provenance.key,
            cached=outcome.cached,
            seconds=outcome.seconds,
            computed_seconds=outcome.record.provenance.seconds,
        )
        for outcome in outcomes
    )


def over_limit_message(size: SizeReport) -> str:
    """A message with the bytes over the limit and the largest parts."""
    largest = ", ".join(f"{part.name} {part.num_bytes:,}" for part in size.largest)
    return (
        f"the submission is over the limit by {-size.margin_bytes:,} bytes ({size.total_bytes:,} of "
        f"{size.limit_bytes:,}). The largest parts: {largest}. Store tensors in fewer bits (quantize.rules) "
        "or make the model smaller (train.model)"
    )


def fit_message(quantizer: QuantizeSpec, size: SizeReport) -> str | None:
    """A message with the bytes that a fit was asked for, beside the limit of the submission; None without a
    fit.
    """
    asked = quantizer.limit_bytes
    if asked is None:
        return None
    left = asked - size.total_bytes
    found = f"is kept, {left:,} left" if left >= 0 else f"is exceeded by {-left:,}"
    return (
        f"quantize.fit.limit_bytes = {asked:,} {found}; the submission's own limit (check_size.limit_bytes) "
        f"is {size.limit_bytes:,}"
    )


def publish_artifacts(report: PipelineReport, store: Path) -> None:
    """Tables and the loss curve as artifacts of the present flow run."""
    create_link_artifact(
        key="report", link=report_address(report, store), description="the whole report, one page"
    )
    create_markdown_artifact(
        key="result", markdown=_result_markdown(report, store), description="bits per byte, bytes and seconds"
    )
    create_table_artifact(
        key="byte-budget", table=budget_table(report.size).dicts(), description="the package's bytes by part"
    )
    create_table_artifact(
        key="quantization", table=tensor_table(report.packed).dicts(), description="each tensor in the blob"
    )
    create_table_artifact(
        key="bpb-decomposition",
        table=score_table(report).dicts(),
        description="the score after each stage",
    )
    create_table_artifact(
        key="techniques", table=audit_table(report.audit).dicts(), description=_audit_summary(report)
    )
    if by_cause := gap_table(report.audit).dicts():
        create_table_artifact(
            key="quantization-gap", table=by_cause, description="what quantization costs, by cause"
        )
    curve = base64.b64encode((store / report.published.loss_curve.path).read_bytes()).decode()
    picture = f"# Loss\n\n![loss](data:image/svg+xml;base64,{curve})"
    create_markdown_artifact(key="loss-curve", markdown=picture, description="training loss")


def report_address(report: PipelineReport, store: Path) -> str:
    """The report's address for a browser: under FAIRWAY_REPORTS_URL if it is set, else a file of this
    machine.
    """
    html = store / report.published.html.path
    served = os.environ.get("FAIRWAY_REPORTS_URL")
    return (
        f"{served.rstrip('/')}/{html.relative_to(store / 'stages' / 'publish').as_posix()}"
        if served
        else html.as_uri()
    )


def _result_markdown(report: PipelineReport, store: Path) -> str:
    figures, stages = run_table(report), stage_rows(report)
    fits = "fits" if report.size.fits else "**does not fit**"
    lines = [
        f"# {report.name}",
        "",
        f"The artifact {fits}: {report.size.total_bytes:,} of {report.size.limit_bytes:,} bytes.",
        "",
    ]
    lines += [
        f"**{finding.title}: {finding.verdict}.** {finding.evidence}.\n" for finding in report.audit.warnings
    ]
    lines += [
        markdown_table(figures.columns, figures.rows),
        "",
        "## Stages",
        "",
        markdown_table(list(stages[0]), [list(row.values()) for row in stages]),
    ]
    lines += [
        "",
        f"Report: `{store / report.published.html.path}`",
        "",
        f"Package: `{store / report.package.folder}`",
    ]
    return "\n".join(lines)


def _audit_summary(report: PipelineReport) -> str:
    count = len(report.audit.warnings)
    return "what each technique did" + (f": {count} to look at" if count else "; nothing to look at")
