"""Comparison of requantized variants: one table, and one plot of bits per byte against bytes."""

import base64
from collections.abc import Sequence

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import State

from flows.results.tables import Row
from schemas.pipeline import PipelineReport
from stages.report.plots import tradeoff
from stages.report.rows import bpb

Variant = tuple[str, PipelineReport | None, State]


def comparison_rows(earlier: PipelineReport, variants: Sequence[Variant]) -> list[Row]:
    """The earlier run and each variant: scores, quantization loss, bytes, and whether they fit."""
    return [
        _row("the earlier run", earlier, earlier.name),
        *(_row(name, report, state.name or "") for name, report, state in variants),
    ]


def publish_comparison(earlier: PipelineReport, variants: Sequence[Variant], rows: list[Row]) -> None:
    """Table (`rows`) and plot as artifacts of the present flow run."""
    create_table_artifact(
        key="comparison", table=rows, description=f"variants of the quantization of {earlier.name}"
    )
    reports = [
        ("the earlier run", earlier),
        *((name, report) for name, report, _ in variants if report is not None),
    ]
    points = [(name, report.size.total_bytes, report.val_bpb_quantized) for name, report in reports]
    picture = base64.b64encode(tradeoff(points, earlier.merged.score.bpb).encode()).decode()
    create_markdown_artifact(
        key="comparison-plot",
        markdown=f"# Bits per byte against bytes\n\n![comparison](data:image/svg+xml;base64,{picture})",
        description="each variant's score and size",
    )


def _row(name: str, report: PipelineReport | None, state: str) -> Row:
    if report is None:
        return {
            "variant": name,
            "val_bpb": "–",
            "sliding": "–",
            "gap to merged": "–",
            "bytes": "–",
            "fits": "–",
            "run": state,
            "id": "–",
        }
    sliding = report.val_bpb_quantized_sliding
    return {
        "variant": name,
        "val_bpb": bpb(report.val_bpb_quantized),
        "sliding": "–" if sliding is None else bpb(sliding),
        "gap to merged": f"{report.val_bpb_quantized - report.val_bpb_merged:+.5f}",
        "bytes": f"{report.size.total_bytes:,}",
        "fits": "yes" if report.size.fits else f"OVER by {-report.size.margin_bytes:,}",
        "run": report.name,
        "id": report.run_id[:8],
    }
