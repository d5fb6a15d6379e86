"""What the report says, as rows of text: computed here, so that the page only lays out."""

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.audit import Audit
from schemas.check_size import SizeReport
from schemas.evaluate import Score
from schemas.files import Provenance
from schemas.gap import GapByCause
from schemas.quantize import PackedModel, TensorReport
from schemas.results import RunResults
from schemas.tokenize_corpus import SplitCounts, TokenizedCorpus
from schemas.train import Checkpoints, ParameterChange

NATS_PER_BIT = 0.6931471805599453


@dataclass(frozen=True)
class Figure:
    """One number at the top of the page."""

    name: str
    value: str
    note: str = ""
    good: bool | None = None


def headline(results: RunResults, audit: Audit) -> list[Figure]:
    """What a reader looks for first."""
    quantized, sliding, size = results.evaluation.non_overlapping, results.evaluation.sliding, results.size
    gap = quantized.bpb - results.merged.merged.bpb
    bits = 8 * results.packed.blob_bytes / results.packed.num_parameters
    best_compressor = min((bpb for _, bpb in compressors(results.tokenized.val)), default=None)
    figures = [
        Figure("bits per byte, what ships", f"{quantized.bpb:.4f}", f"{gap:+.5f} by quantization"),
        Figure("artifact bytes", f"{size.total_bytes:,}", _margin(size), good=size.fits),
        Figure("parameters", f"{results.trained.num_parameters:,}", f"{bits:.2f} bits each"),
    ]
    if sliding:
        figures.insert(
            1,
            Figure(
                "sliding windows",
                f"{sliding.bpb:.4f}",
                f"{sliding.bpb - quantized.bpb:+.4f} by longer context",
            ),
        )
    if warnings := audit.warnings:
        names = ", ".join(finding.title for finding in warnings)
        figures.append(Figure("techniques and rules", f"{len(warnings)} to look at", names, good=False))
    if best_compressor is not None:
        better = quantized.bpb < best_compressor
        figures.append(
            Figure(
                "best general compressor",
                f"{best_compressor:.4f}",
                "beaten" if better else "not beaten",
                good=better,
            )
        )
    return figures


def score_steps(results: RunResults) -> list[tuple[str, Score]]:
    """The scores in the order of the chain."""
    steps = [
        ("last iterate", results.merged.last),
        (f"merged ({results.merged.method} of {len(results.merged.steps)})", results.merged.merged),
        (f"quantized ({results.packed.method})", results.evaluation.non_overlapping),
    ]
    return (
        [*steps, ("quantized, sliding", results.evaluation.sliding)] if results.evaluation.sliding else steps
    )


def score_rows(results: RunResults) -> list[list[str]]:
    """step, bpb, change, nats a target, targets, bytes, BOS share in bpb."""
    rows, before = [], None
    for name, score in score_steps(results):
        change = "" if before is None else f"{score.bpb - before:+.5f}"
        bos = score.bos_nats_sum / NATS_PER_BIT / score.num_bytes
        rows.append(
            [
                name,
                f"{score.bpb:.5f}",
                change,
                f"{score.loss:.5f}",
                f"{score.num_targets:,}",
                f"{score.num_bytes:,}",
                f"{bos:.5f}",
            ]
        )
        before = score.bpb
    return rows


def audit_rows(audit: Audit) -> list[tuple[list[str], bool]]:
    """technique, verdict, evidence; and whether it is a warning."""
    return [
        ([finding.title, finding.verdict, finding.evidence], finding.is_warning) for finding in audit.findings
    ]


def compressors(val: SplitCounts) -> list[tuple[str, float]]:
    """General compressors on the same text, in bits per byte."""
    counts = (("zstd -22", val.zstd_bytes), ("xz -9", val.xz_bytes))
    return [(name, 8 * count / val.utf8_bytes) for name, count in counts if count and val.utf8_bytes]


def budget_parts(size: SizeReport) -> list[tuple[str, int]]:
    """Code, then the blob's tensor groups."""
    return [("code", size.code_bytes), *((part.name, part.num_bytes) for part in size.tensor_groups)]


def budget_rows(size: SizeReport) -> list[list[str]]:
    """part, bytes, share of the artifact, share of the limit; the margin last."""
    parts = [*budget_parts(size), ("total", size.total_bytes)]
    rows = [
        [name, f"{count:,}", f"{count / size.total_bytes:.2%}", f"{count / size.limit_bytes:.2%}"]
        for name, count in parts
    ]
    margin = "to spare" if size.fits else "over the limit"
    return [
        *rows,
        [margin, f"{abs(size.margin_bytes):,}", "", f"{abs(size.margin_bytes) / size.limit_bytes:.2%}"],
    ]


def coding_rows(size: SizeReport) -> list[list[str]]:
    """tensor group, weights, bits a weight in the blob, order-0 entropy in bits a weight, the first over
    the second.
    """
    return [
        [
            group.name,
            f"{group.num_weights:,}",
            f"{group.bits_per_weight:.3f}",
            f"{group.entropy_bits:.3f}",
            f"{group.bits_per_weight / group.entropy_bits - 1:+.1%}" if group.entropy_bits else "–",
        ]
        for group in size.tensor_groups
        if group.num_weights
    ]


def tensor_rows(packed: PackedModel) -> list[list[str]]:
    """name, shape, format, relative error, error over plain rounding's, entropy, stored and compressed
    bytes, bits a weight.
    """
    return [
        [
            tensor.name,
            _shape(tensor.shape),
            tensor.format,
            f"{tensor.relative_error:.3%}",
            f"{tensor.rms_error / tensor.rms_error_round_to_nearest:.3f}"
            if tensor.rms_error_round_to_nearest
            else "–",
            f"{tensor.entropy_bits:.2f}",
            f"{tensor.stored_bytes:,}",
            f"{tensor.compressed_bytes:,}",
            f"{8 * tensor.compressed_bytes / tensor.num_elements:.2f}",
        ]
        for tensor in packed.tensors
    ]


def clip_bars(packed: PackedModel) -> list[list[tuple[float, float]]]:
    """For each tensor, (share of its rows, depth) by clip ratio from 1 down; depth is 0 without clipping,
    1 at the run's lowest ratio.
    """
    lowest = min((clip.clip_ratio for tensor in packed.tensors for clip in tensor.clips), default=1.0)
    bars = []
    for tensor in packed.tensors:
        rows = sum(clip.num_rows for clip in tensor.clips)
        ordered = sorted(tensor.clips, key=lambda clip: -clip.clip_ratio)
        bars.append(
            [(clip.num_rows / rows, (1 - clip.clip_ratio) / max(1 - lowest, 1e-9)) for clip in ordered]
        )
    return bars


def clip_text(tensor: TensorReport) -> str:
    """`1: 40 %, 0.95: 60 %`: which clip ratio the rows chose."""
    rows = sum(clip.num_rows for clip in tensor.clips)
    return ", ".join(
        f"{clip.clip_ratio:g}: {clip.num_rows / rows:.0%}"
        for clip in sorted(tensor.clips, key=lambda clip: -clip.clip_ratio)
    )


def quantization_gain(packed: PackedModel) -> str:
    """What the method saved against plain rounding, or that it saved nothing."""
    saved = packed.blob_bytes_round_to_nearest - packed.blob_bytes
    squares = sum(t.num_elements * t.rms_error**2 for t in packed.tensors)
    plain = sum(t.num_elements * t.rms_error_round_to_nearest**2 for t in packed.tensors)
    if packed.method == "round_to_nearest":
        return "Plain rounding: there is no search to gain anything."
    moved = (
        ""
        if packed.divergence_nats is None
        else f" On training text the predictions move by {packed.divergence_nats:.5f} nats a token."
    )
    if packed.method == "ecsq":
        bits = 8 * packed.blob_bytes / packed.num_parameters
        return (
            f"Steps by what errors cost, coded by rANS: {bits:.2f} bits a parameter, everything "
            f"included.{moved}"
        )
    error = f"{1 - squares / plain:.2%} less squared error" if plain > squares else "no less squared error"
    size = (
        f"a blob {abs(saved):,} bytes {'smaller' if saved > 0 else 'larger'}"
        if saved
        else "a blob of the same size"
    )
    return f"Against plain rounding with the same rules, {packed.method} gives {error} and {size}.{moved}"


def group_rows(trained: Checkpoints) -> list[list[str]]:
    """group, optimizer, lr, weight decay, tensors, parameters."""
    return [
        [
            group.name,
            group.optimizer,
            f"{group.lr:g}",
            f"{group.weight_decay:g}",
            f"{len(group.parameters):,}",
            f"{group.num_parameters:,}",
        ]
        for group in trained.groups
    ]


def gap_rows(gap: GapByCause) -> list[list[str]]:
    """cause, bpb, its standard error, divergence in nats a token; the whole last."""
    return [
        [
            part.cause,
            f"{part.bpb:+.5f}",
            f"± {part.standard_error_bpb:.5f}",
            "" if part.divergence_nats is None else f"{part.divergence_nats:.5f}",
        ]
        for part in (*gap.parts, gap.total)
    ]


def change_rows(trained: Checkpoints) -> list[tuple[list[str], bool]]:
    """name, shape, rms before, rms after, rms of the change; and whether the tensor stayed exactly as it
    was initialised.
    """
    return [(_change(change), change.change_rms == 0) for change in trained.changes]


def machine_rows(provenance: Sequence[Provenance]) -> list[list[str]]:
    """stage, CPU and GPUs, processes × threads, precision and why, kind of machine; of the stages that
    compute floating-point numbers.
    """
    return [
        [
            origin.stage,
            ", ".join([origin.machine.cpu, *origin.machine.gpus]),
            f"{origin.machine.processes} × {origin.machine.threads}",
            origin.machine.precision,
            origin.machine.kind,
        ]
        for origin in provenance
        if origin.machine.precision
    ]


def training_rows(trained: Checkpoints, provenance: Sequence[Provenance] = ()) -> list[list[str]]:
    """How the training went, figure by figure; its precision where `provenance` has the stage."""
    timings = trained.timings
    precision, _, why = next(
        (origin.machine.precision for origin in provenance if origin.stage == "train"), ""
    ).partition(": ")
    overhead = timings.snapshot_seconds + timings.checkpoint_seconds
    return [
        ["steps", f"{trained.steps:,}", f"stopped by {trained.stopped_by}"],
        *([["precision", precision, why]] if precision else []),
        ["tokens seen", f"{trained.tokens_seen:,}", f"{trained.epochs:.2f} passes over the training split"],
        ["training loss, last tenth", f"{trained.final_train_loss:.4f}", "nats a token"],
        ["steps under QAT", f"{trained.qat_steps:,}", ""],
        [
            "snapshots",
            f"{len(trained.snapshots)}",
            ", ".join(f"{snapshot.step}" for snapshot in trained.snapshots),
        ],
        [
            "training time",
            f"{timings.training_seconds:.1f} s",
            f"{timings.median_step_milliseconds:.1f} ms a step (median)",
        ],
        ["throughput", f"{timings.tokens_per_second:,.0f}", "tokens a second"],
        [
            "held up by snapshots and checkpoints",
            f"{overhead:.2f} s",
            f"{overhead / max(timings.training_seconds, 1e-9):.2%} of the time",
        ],
        ["peak memory", f"{timings.peak_memory_bytes / 1e9:.2f} GB", "of the first process"],
        ["resumed from", ", ".join(map(str, timings.resumed_from_steps)) or "–", "steps"],
    ]


def corpus_rows(tokenized: TokenizedCorpus) -> list[list[str]]:
    """split, documents, tokens, BOS, bytes as they came, normalised bytes, bytes a token."""
    rows = []
    for name, split in (("train", tokenized.train), ("validation", tokenized.val)):
        per_token = (
            f"{split.normalized_utf8_bytes / split.num_tokens:.3f}" if split.normalized_utf8_bytes else "–"
        )
        counts = (
            split.num_documents,
            split.num_tokens,
            split.num_bos,
            split.utf8_bytes,
            split.normalized_utf8_bytes,
        )
        rows.append([name, *("–" if count is None else f"{count:,}" for count in counts), per_token])
    return rows


def _change(change: ParameterChange) -> list[str]:
    return [
        change.name,
        _shape(change.shape),
        f"{change.initial_rms:.4g}",
        f"{change.final_rms:.4g}",
        f"{change.change_rms:.4g}",
    ]


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "1"


def _margin(size: SizeReport) -> str:
    return f"{abs(size.margin_bytes):,} {'under' if size.fits else 'OVER'} the limit of {size.limit_bytes:,}"
