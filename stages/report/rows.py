"""Tables of a run's figures as text, the same for the terminal, the report page and Prefect's artifacts.

They fix digits and words for all three. The module imports neither Prefect nor torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.audit import Audit
from schemas.check_size import SizeReport, TensorGroup
from schemas.evaluate import LoraScores, Score
from schemas.quantize import PackedModel, TensorReport
from schemas.results import RunResults
from schemas.tokenize_corpus import SplitCounts

NATS_PER_BIT = 0.6931471805599453


@dataclass(frozen=True)
class Table:
    """Columns and rows of text. `left` names the columns that hold words; the others hold numbers.

    `marks` is empty or has a word for each row: "bad" for a warning, "good", "off", or "".
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()

    def dicts(self) -> list[dict[str, str]]:
        """Each row as a dict from column name to text."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    @property
    def right(self) -> tuple[str, ...]:
        """The columns of numbers."""
        return tuple(name for name in self.columns if name not in self.left)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The rows as Markdown; a cell may hold any text."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [columns, ["---"] * len(columns), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bpb(value: float) -> str:
    """Bits per byte with the significant digits."""
    return f"{value:.5f}"


def averaged(results: RunResults) -> str:
    """What the merged model is the mean of, and how much of that was under QAT."""
    merged = results.merged
    of_steps = merged.method == "ema_of_steps"
    return f"{merged.averaged}, {results.trained.qat_steps if of_steps else merged.num_with_qat} under QAT"


def result_table(results: RunResults, title: str, sliding_by: str) -> Table:
    """The main figures of a run. `sliding_by` is of `how_sliding`; empty if unknown."""
    merged, sliding, size = results.merged, results.val_bpb_quantized_sliding, results.size
    gap = results.val_bpb_quantized - results.val_bpb_merged
    files = f"{size.model_bytes:,} model + {size.code_bytes:,} code"
    side = "to spare" if size.fits else "OVER"
    margin = f"{abs(size.margin_bytes):,} bytes {side}"
    rows = (
        ("val_bpb last iterate", bpb(results.val_bpb_last), f"non-overlapping windows{merged.last.mode}"),
        ("val_bpb merged", bpb(results.val_bpb_merged), averaged(results)),
        ("val_bpb quantized", bpb(results.val_bpb_quantized), f"{results.packed.method}, in the package"),
        (
            "val_bpb quantized, sliding",
            _bpb_or_dash(sliding),
            f"{sliding_by}{results.evaluation.non_overlapping.mode}" if sliding_by else "",
        ),
        *_learned_rows(results.evaluation.test_time_training),
        ("gap quantized − merged", f"{gap:+.5f}", "bpb, the same windows"),
        *(
            (f"{name} on the validation text", bpb(value), "bits per byte, for comparison")
            for name, value in compressors(results.tokenized.val)
        ),
        ("parameters", f"{results.packed.num_parameters:,}", ""),
        ("artifact bytes", f"{size.total_bytes:,}", files),
        ("limit", f"{size.limit_bytes:,}", margin),
    )
    marks = ("",) * (len(rows) - 1) + ("good" if size.fits else "bad",)
    return Table(title, ("figure", "value", "note"), rows, ("figure", "note"), marks)


def _learned_rows(learned: LoraScores | None) -> list[tuple[str, str, str]]:
    """The figure with test-time training, if there is one, and its gain."""
    if learned is None:
        return []
    name, score, gain = "val_bpb test-time training", learned.adapted, learned.gain_bpb
    if score is None or gain is None:
        return [(name, "–", f"its clock ran out at {learned.done_share:.1%}")]
    return [(name, bpb(score.bpb), f"windows{score.mode}; {gain:+.5f} by it")]


def score_steps(results: RunResults) -> list[tuple[str, Score]]:
    """The scores in the order of the chain."""
    merged, evaluation = results.merged, results.evaluation
    learned = evaluation.test_time_training
    steps = [
        ("last iterate", merged.last),
        (f"merged ({merged.averaged})", merged.score),
        (f"quantized ({results.packed.method})", evaluation.non_overlapping),
        ("quantized, sliding", evaluation.sliding),
        ("quantized, sliding in chunks", learned and learned.without),
        ("the same, test-time training", learned and learned.adapted),
    ]
    return [(name, score) for name, score in steps if score]


def score_table(results: RunResults) -> Table:
    """The score after each stage and its change by that stage."""
    rows: list[tuple[str, ...]] = []
    before: Score | None = None
    for name, score in score_steps(results):
        rows.append(
            (
                name + score.mode,
                bpb(score.bpb),
                # Windows of two modes do not compare.
                "" if before is None or before.windows != score.windows else f"{score.bpb - before.bpb:+.5f}",
                f"{score.loss:.5f}",
                f"{score.num_targets:,}",
                f"{score.num_bytes:,}",
                bpb(score.bos_nats_sum / NATS_PER_BIT / score.num_bytes),
            )
        )
        before = score
    columns = ("step", "val_bpb", "change", "nats a target", "targets", "bytes", "BOS share, bpb")
    return Table("Bits per byte, step by step", columns, tuple(rows), ("step",))


def compressors(val: SplitCounts) -> list[tuple[str, float]]:
    """General compressors on the validation text, in bits per byte."""
    counts = (("zstd -22", val.zstd_bytes), ("xz -9", val.xz_bytes))
    return [(name, 8 * count / val.utf8_bytes) for name, count in counts if count and val.utf8_bytes]


def budget_parts(size: SizeReport) -> list[tuple[str, int]]:
    """Code, then the blob's tensor groups."""
    return [("code", size.code_bytes), *((part.name, part.num_bytes) for part in size.tensor_groups)]


def budget_table(size: SizeReport) -> Table:
    """The bytes of the package: code, then the blob by tensor group beside its order-0 entropy, then total
    and margin.
    """
    groups = {group.name: group for group in size.tensor_groups}
    parts = [*budget_parts(size), ("total", size.total_bytes)]
    rows = [
        (
            name,
            f"{count:,}",
            f"{count / size.total_bytes:.2%}",
            f"{count / size.limit_bytes:.2%}",
            *_coding(groups.get(name)),
        )
        for name, count in parts
    ]
    margin = abs(size.margin_bytes)
    name = "to spare" if size.fits else "OVER the limit"
    rows.append((name, f"{margin:,}", "", f"{margin / size.limit_bytes:.2%}", *_coding(None)))
    columns = ("part", "bytes", "of the artifact", "of the limit")
    coding = ("weights", "bits a weight", "order-0 entropy", "against it")
    return Table("Byte budget", (*columns, *coding), tuple(rows), ("part",))


def tensor_table(packed: PackedModel) -> Table:
    """Each tensor of the blob: format, clips, error against plain rounding, entropy and bytes."""
    columns = (
        "tensor",
        "shape",
        "format",
        "rows clipped",
        "relative error",
        "error / plain rounding",
        "entropy bits",
        "stored bytes",
        "compressed bytes",
        "bits a weight",
    )
    rows = tuple(_tensor(tensor) for tensor in packed.tensors)
    return Table("Each tensor in the blob", columns, rows, ("tensor", "shape", "format"))


def audit_table(audit: Audit) -> Table:
    """The verdict on each technique and rule, warnings first."""
    findings = sorted(audit.findings, key=lambda finding: not finding.is_warning)
    rows = tuple(
        (finding.title, f"⚠ {finding.verdict}" if finding.is_warning else finding.verdict, finding.evidence)
        for finding in findings
    )
    calm = ["off" if finding.verdict == "off" else "" for finding in findings]
    marks = tuple("bad" if item.is_warning else mark for item, mark in zip(findings, calm, strict=True))
    columns = ("technique or rule", "verdict", "evidence")
    return Table("Techniques and rules", columns, rows, columns, marks)


def gap_table(audit: Audit) -> Table:
    """What quantization costs by cause, the total last; without rows if it was not measured."""
    parts = (*audit.gap.parts, audit.gap.total) if audit.gap else ()
    rows = tuple(
        (
            part.cause,
            f"{part.bpb:+.5f}",
            f"{part.standard_error_bpb:.5f}",
            "" if part.divergence_nats is None else f"{part.divergence_nats:.5f}",
        )
        for part in parts
    )
    columns = ("cause", "bpb", "standard error", "divergence, nats a token")
    return Table("What quantization costs, by cause", columns, rows, ("cause",))


def shape_text(shape: tuple[int, ...]) -> str:
    """`8×16`; `1` for a single number."""
    return "×".join(map(str, shape)) or "1"


def _bpb_or_dash(value: float | None) -> str:
    return "–" if value is None else bpb(value)


def _coding(group: TensorGroup | None) -> tuple[str, str, str, str]:
    """Weights, bits a weight, order-0 entropy in bits a weight, and the ratio of the two."""
    if group is None or not group.num_weights:
        return "", "", "", ""
    over = f"{group.bits_per_weight / group.entropy_bits - 1:+.1%}" if group.entropy_bits else "–"
    return f"{group.num_weights:,}", f"{group.bits_per_weight:.3f}", f"{group.entropy_bits:.3f}", over


def _tensor(tensor: TensorReport) -> tuple[str, ...]:
    clipped = sum(clip.num_rows for clip in tensor.clips if clip.clip_ratio != 1)
    plain = tensor.rms_error_round_to_nearest
    return (
        tensor.name,
        shape_text(tensor.shape),
        tensor.format,
        f"{clipped:,}" if tensor.clips else "",
        f"{tensor.relative_error:.3%}",
        f"{tensor.rms_error / plain:.3f}" if plain else "–",
        f"{tensor.entropy_bits:.3f}",
        f"{tensor.stored_bytes:,}",
        f"{tensor.compressed_bytes:,}",
        f"{8 * tensor.compressed_bytes / tensor.num_elements:.3f}",
    )
