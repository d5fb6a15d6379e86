"""A run's figures as rows of text, the same for terminal and Prefect artifacts.

Imports neither Prefect nor torch.
"""

from schemas.pipeline import PipelineReport

Row = dict[str, str]

_MAX_VALUE_CHARACTERS = 60


def result_rows(report: PipelineReport) -> list[Row]:
    """Figure and value, in the order that a reader wants them."""
    merged, sliding, val = report.merged, report.evaluation.sliding, report.tokenized.val
    rows = [
        _row("val_bpb last iterate", bpb(report.val_bpb_last), "non-overlapping windows"),
        _row(
            "val_bpb merged",
            bpb(report.val_bpb_merged),
            f"{merged.method} of {len(merged.steps)}, {merged.num_with_qat} under QAT",
        ),
        _row("val_bpb quantized", bpb(report.val_bpb_quantized), f"{report.packed.method}, what ships"),
        _row(
            "val_bpb quantized, sliding",
            bpb(sliding.bpb) if sliding else "–",
            f"stride {report.spec.evaluate.scoring.stride}",
        ),
        _row(
            "gap quantized − merged",
            f"{report.val_bpb_quantized - report.val_bpb_merged:+.5f}",
            "bpb, the same windows",
        ),
    ]
    for name, packed_bytes in (("zstd -22", val.zstd_bytes), ("xz -9", val.xz_bytes)):
        if packed_bytes and val.utf8_bytes:
            rows.append(
                _row(
                    f"{name} on the validation text",
                    bpb(8 * packed_bytes / val.utf8_bytes),
                    "bits per byte, for comparison",
                )
            )
    size = report.size
    return [
        *rows,
        _row("parameters", f"{report.packed.num_parameters:,}", ""),
        _row(
            "artifact bytes",
            f"{size.total_bytes:,}",
            f"{size.model_bytes:,} model + {size.code_bytes:,} code",
        ),
        _row(
            "limit",
            f"{size.limit_bytes:,}",
            f"{abs(size.margin_bytes):,} bytes {'to spare' if size.fits else 'OVER'}",
        ),
    ]


def stage_rows(report: PipelineReport) -> list[Row]:
    """Each stage, its seconds in this run, and when cached the seconds that it once took."""
    return [
        {
            "stage": stage.stage,
            "seconds": f"{stage.seconds:.1f}",
            "state": f"Cached (took {stage.computed_seconds:.1f} s)" if stage.cached else "Completed",
            "key": stage.key[:12],
        }
        for stage in report.stages
    ]


def budget_rows(report: PipelineReport) -> list[Row]:
    """What the bytes go to: code, then the blob by tensor group beside its order-0 entropy, then the
    total and the limit.
    """
    size = report.size
    rows = [_budget_row("code", size.code_bytes, size.limit_bytes)]
    for group in size.tensor_groups:
        bits = (
            (f"{group.bits_per_weight:.2f}", f"{group.entropy_bits:.2f}") if group.num_weights else ("", "")
        )
        rows.append(_budget_row(group.name, group.num_bytes, size.limit_bytes, *bits))
    rows.append(_budget_row("total", size.total_bytes, size.limit_bytes))
    return [*rows, _budget_row("margin", size.margin_bytes, size.limit_bytes)]


def quantization_rows(report: PipelineReport) -> list[Row]:
    """Each tensor of the blob: format, clips, error against plain rounding, entropy and bytes."""
    return [
        {
            "tensor": tensor.name,
            "shape": "×".join(map(str, tensor.shape)),
            "format": tensor.format,
            "rows clipped": f"{sum(clip.num_rows for clip in tensor.clips if clip.clip_ratio != 1):,}"
            if tensor.clips
            else "",
            "relative error": f"{tensor.relative_error:.4%}",
            "error / plain rounding": (
                f"{tensor.rms_error / tensor.rms_error_round_to_nearest:.4f}"
                if tensor.rms_error_round_to_nearest
                else "–"
            ),
            "entropy bits": f"{tensor.entropy_bits:.3f}",
            "stored bytes": f"{tensor.stored_bytes:,}",
            "compressed bytes": f"{tensor.compressed_bytes:,}",
        }
        for tensor in report.packed.tensors
    ]


def audit_rows(report: PipelineReport) -> list[Row]:
    """What each technique did and whether each rule holds; those to look at first."""
    findings = sorted(report.audit.findings, key=lambda finding: not finding.is_warning)
    return [
        {
            "technique or rule": finding.title,
            "verdict": ("⚠ " if finding.is_warning else "") + finding.verdict,
            "evidence": finding.evidence,
        }
        for finding in findings
    ]


def gap_rows(report: PipelineReport) -> list[Row]:
    """What quantization costs by cause, the whole last; no rows where it was not measured."""
    gap = report.audit.gap
    return [
        {
            "cause": part.cause,
            "bpb": f"{part.bpb:+.5f}",
            "standard error": f"{part.standard_error_bpb:.5f}",
            "divergence, nats a token": "" if part.divergence_nats is None else f"{part.divergence_nats:.5f}",
        }
        for part in ((*gap.parts, gap.total) if gap else ())
    ]


def decomposition_rows(report: PipelineReport) -> list[Row]:
    """The score after each step and what the step did to it: one gap, one effect."""
    steps = [
        ("last iterate", report.val_bpb_last),
        ("merged", report.val_bpb_merged),
        ("quantized", report.val_bpb_quantized),
    ]
    if report.evaluation.sliding:
        steps.append(("sliding windows", report.evaluation.sliding.bpb))
    before = [None, *(value for _, value in steps)]
    return [
        {"step": name, "val_bpb": bpb(value), "change": "" if earlier is None else f"{value - earlier:+.5f}"}
        for (name, value), earlier in zip(steps, before, strict=False)
    ]


def bpb(value: float) -> str:
    """Bits per byte with the digits that mean something."""
    return f"{value:.5f}"


def shorten(text: str) -> str:
    """At most one terminal column's worth of `text`."""
    return text if len(text) <= _MAX_VALUE_CHARACTERS else text[: _MAX_VALUE_CHARACTERS - 1] + "…"


def _row(name: str, value: str, note: str) -> Row:
    return {"figure": name, "value": value, "note": note}


def _budget_row(part: str, num_bytes: int, limit_bytes: int, bits: str = "", entropy: str = "") -> Row:
    share = f"{num_bytes / limit_bytes:.2%}"
    return {
        "part": part,
        "bytes": f"{num_bytes:,}",
        "share of the limit": share,
        "bits a weight": bits,
        "order-0 entropy": entropy,
    }
