"""Tables of the report page alone, as rows of text. Tables for other places are in `stages.report.rows`."""

from collections.abc import Sequence

from schemas.audit import Audit
from schemas.files import Provenance
from schemas.printable import printable
from schemas.quantize import PackedModel, TensorReport
from schemas.tokenize_corpus import TokenizedCorpus
from schemas.train import ParameterChange, TrainingResult
from stages.report.rows import shape_text


def written_texts(audit: Audit) -> list[tuple[str, list[tuple[str, str]]]]:
    """The start of each document, and how it goes on by whom."""
    return [
        (
            printable(start.prompt),
            [
                ("document", printable(start.document)),
                ("merged", printable(start.merged)),
                ("quantized", printable(start.quantized)),
            ],
        )
        for start in audit.written
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
    """The rows' clip ratios: `1: 40 %, 0.95: 60 %`."""
    rows = sum(clip.num_rows for clip in tensor.clips)
    return ", ".join(
        f"{clip.clip_ratio:g}: {clip.num_rows / rows:.0%}"
        for clip in sorted(tensor.clips, key=lambda clip: -clip.clip_ratio)
    )


def quantization_gain(packed: PackedModel) -> str:
    """What the method gained over plain rounding, or that it gained nothing."""
    saved = packed.blob_bytes_round_to_nearest - packed.blob_bytes
    less = packed.squared_error_saved
    if packed.is_plain:
        return "Plain rounding: this method searches nothing, so it gains nothing."
    moved = (
        ""
        if packed.divergence_nats is None
        else f" The predictions on training text change by {packed.divergence_nats:.5f} nats a token."
    )
    if packed.is_coded:
        return (
            "The cost of errors sets the quantization steps; rANS codes the result: "
            f"{packed.bits_per_parameter:.2f} bits a parameter, everything included.{moved}"
        )
    error = f"{less:.2%} less squared error" if less > 0 else "no less squared error"
    direction = "smaller" if saved > 0 else "larger"
    size = f"a blob {abs(saved):,} bytes {direction}" if saved else "a blob of the same size"
    return f"Against plain rounding with the same rules, {packed.method} gives {error} and {size}.{moved}"


def group_rows(trained: TrainingResult) -> list[list[str]]:
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


def change_rows(trained: TrainingResult) -> list[tuple[list[str], bool]]:
    """name, shape, rms before, rms after, rms of the change; and whether the tensor is exactly as
    initialised.
    """
    return [(_change(change), change.change_rms == 0) for change in trained.changes]


def machine_rows(provenance: Sequence[Provenance]) -> list[list[str]]:
    """stage, CPU and GPUs, processes × threads, precision and why, kind of machine; for the stages that
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


def training_rows(trained: TrainingResult, provenance: Sequence[Provenance] = ()) -> list[list[str]]:
    """Figures of the training, one a row; with its precision if `provenance` has the stage."""
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
        *(
            [["scores of held-out text", f"{timings.scoring_seconds:.2f} s", "outside the training time"]]
            if timings.scoring_seconds
            else []
        ),
        ["peak memory", f"{timings.peak_memory_bytes / 1e9:.2f} GB", "of the first process"],
        ["resumed from", ", ".join(map(str, timings.resumed_from_steps)) or "–", "steps"],
    ]


def corpus_rows(tokenized: TokenizedCorpus) -> list[list[str]]:
    """split, documents, tokens, BOS, bytes of the text as read, normalised bytes, bytes a token."""
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
        shape_text(change.shape),
        f"{change.initial_rms:.4g}",
        f"{change.final_rms:.4g}",
        f"{change.change_rms:.4g}",
    ]
