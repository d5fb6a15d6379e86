"""Conclusions from a ledger of seeds (the list of one configuration's seeds): table, statistics, verdict and
artifacts.
"""

import base64
import math

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.results.tables import Row
from schemas.errors import SpecError, first_line
from schemas.pipeline import PipelineReport
from schemas.seeds import Comparison, Ledger, SeedFigures
from stages.report.plots import seeds_plot
from stages.report.rows import bpb
from stages.seeds.statistics import POWER, beats_ledger, beats_mark, nats_to_bpb, seeds_needed, summarize


def seed_figures(report: PipelineReport) -> SeedFigures:
    """The figures of a run that a ledger keeps."""
    score = report.evaluation.sliding or report.evaluation.non_overlapping
    return SeedFigures(
        val_loss_nats=score.loss,
        val_bpb_last=report.val_bpb_last,
        val_bpb_merged=report.val_bpb_merged,
        val_bpb_quantized=report.val_bpb_quantized,
        val_bpb_quantized_sliding=report.val_bpb_quantized_sliding,
        num_targets=score.num_targets,
        num_bytes=score.num_bytes,
        total_bytes=report.size.total_bytes,
        blob_sha256=report.packed.blob.sha256,
    )


def seed_rows(book: Ledger) -> list[Row]:
    """Every seed with its figures; a failed one with its error."""
    return [
        {
            "seed": str(entry.seed),
            "status": entry.status,
            "nats a token": f"{entry.figures.val_loss_nats:.5f}" if entry.figures else "–",
            "val_bpb": bpb(entry.figures.val_bpb_quantized) if entry.figures else "–",
            "sliding": bpb(entry.figures.val_bpb_quantized_sliding)
            if entry.figures and entry.figures.val_bpb_quantized_sliding
            else "–",
            "bytes": f"{entry.figures.total_bytes:,}" if entry.figures else "–",
            "code": entry.code_sha256[:12],
            "run": entry.run_name,
            "note": first_line(entry.error)
            or (f"same figures again on {entry.rechecked_at}" if entry.rechecked_at else ""),
        }
        for entry in book.entries
    ]


def conclusions(
    book: Ledger, other: Ledger | None, mark: float | None, margin: float, alpha: float
) -> list[str]:
    """Sentences on the mean, its standard deviation, the verdict, repeated tests, and any reservations."""
    failed = [entry.seed for entry in book.entries if entry.status == "failed"]
    counts = f"{len(book.completed())} of at most {book.max_seeds} seeds are done"
    sentences = [f"{counts}; failed, to be retried: {', '.join(map(str, failed)) or 'none'}."]
    losses, summary = book.losses(), summarize(book.losses())
    if summary is None:
        return [
            *sentences,
            "Statistics need at least two completed seeds; the same command trains the next one.",
        ]
    sentences.append(
        f"Mean {summary.mean:.5f} nats a token, standard deviation {summary.std:.5f}, "
        f"95 % interval {summary.low:.5f} to {summary.high:.5f}."
    )
    scores = [entry.figures for entry in book.completed() if entry.figures]
    bits = summarize([figures.val_bpb_quantized_sliding or figures.val_bpb_quantized for figures in scores])
    if bits:
        sentences.append(
            f"In bits per byte: mean {bits.mean:.5f}, standard deviation {bits.std:.5f}, 95 % "
            f"interval {bits.low:.5f} to {bits.high:.5f}."
        )
    if len({entry.code_sha256 for entry in book.completed()}) > 1:
        sentences.append(
            "The seeds were trained by more than one version of the code (column `code`): their "
            "standard deviation is not that of seeds alone."
        )
    if len(trained_on := _machines(book)) > 1:
        where = "; ".join(f"{kind} (seed {', '.join(map(str, seeds))})" for kind, seeds in trained_on.items())
        sentences.append(
            f"The seeds were trained on more than one kind of machine, whose last digits differ: {where}."
        )
    looks = book.max_seeds - 1
    comparison = None
    if other is not None:
        comparison = beats_ledger(losses, _comparable(book, other), margin, alpha, looks)
    elif mark is not None:
        comparison = beats_mark(losses, mark, margin, alpha, looks)
    if comparison:
        spreads = (
            [summary.std]
            if other is None
            else [each.std for each in (summary, summarize(other.losses())) if each]
        )
        std = math.sqrt(math.fsum(spread**2 for spread in spreads) / len(spreads))
        verdict = _verdict(comparison, f"ledger {other.label}" if other else "the mark")
        return [
            *sentences,
            verdict[0],
            _in_bits(comparison, scores[0]),
            *verdict[1:],
            _power_note(comparison, std, len(spreads)),
        ]
    why = (
        f"ledger {other.label} has fewer than two completed seeds"
        if other
        else "neither mark_nats nor against was given"
    )
    return [*sentences, f"No verdict: {why}."]


def mark_line(other: Ledger | None, mark: float | None, margin: float) -> float | None:
    """The loss (nats a token) that the mean must be below; None without a mark."""
    if other is not None:
        summary = summarize(other.losses())
        mark = summary.mean if summary else None
    return None if mark is None else mark - margin


def publish_seeds(book: Ledger, sentences: list[str], bar: float | None) -> None:
    """Conclusions, picture and table as artifacts of the present flow run."""
    lines = [f"# Seeds of {book.label}", "", *(f"- {sentence}" for sentence in sentences)]
    if summary := summarize(book.losses()):
        points = [(entry.seed, entry.figures.val_loss_nats) for entry in book.completed() if entry.figures]
        svg = seeds_plot(points, summary.mean, (summary.low, summary.high), bar)
        lines += ["", f"![seeds](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"]
    create_markdown_artifact(
        key="seed-validation", markdown="\n".join(lines), description=f"what the seeds of {book.label} show"
    )
    if book.entries:
        create_table_artifact(key="seeds", table=seed_rows(book), description=f"every seed of {book.label}")


def _verdict(comparison: Comparison, what: str) -> list[str]:
    direction = "better" if comparison.better_by >= 0 else "worse"
    sign, answer = ("<", "beaten") if comparison.passed else ("≥", "not beaten")
    below = "is" if comparison.passed_for_all_looks else "is not"
    return [
        f"Against {what} ({comparison.mark:.5f} nats a token): {abs(comparison.better_by):.5f} nats "
        f"{direction}; the margin is {comparison.margin:g}. One-sided {comparison.test} test: p = "
        f"{comparison.p_value:.4g} {sign} {comparison.alpha:g}: **{answer}**.",
        f"This is test {comparison.look} of at most {comparison.planned_looks}. Each test is another chance "
        f"of a false alarm. Over all tests this chance stays below {comparison.alpha:g} if p is below "
        f"{comparison.alpha_each_look:.2g} in one of them (Bonferroni): p {below}.",
    ]


def _in_bits(comparison: Comparison, figures: SeedFigures) -> str:
    """The mark, its margin and the difference as bits per byte: exact, because every seed is scored on the
    same text.
    """

    def bits(nats: float) -> float:
        return nats_to_bpb(nats, figures.num_targets, figures.num_bytes)

    return (
        f"In bits per byte, at {figures.num_bytes / figures.num_targets:.4f} bytes a token: mark "
        f"{bits(comparison.mark):.5f}, margin {bits(comparison.margin):.5f}, difference "
        f"{bits(comparison.better_by):+.5f} (95 % interval {bits(comparison.low):+.5f} to "
        f"{bits(comparison.high):+.5f}; positive is better)."
    )


def _power_note(comparison: Comparison, std: float, samples: int) -> str:
    """How many seeds would show a difference of the margin's size, and one of the measured size beyond the
    margin.
    """
    excess = comparison.better_by - comparison.margin
    wanted = {"0.005 nats": 0.005, f"{excess:.5f} nats (as measured)": excess}
    needed = {
        name: seeds_needed(value, std, comparison.alpha, samples=samples)
        for name, value in wanted.items()
        if value > 0
    }
    each = " in each ledger" if samples == 2 else ""
    needs = "; ".join(
        f"{name} beyond the margin needs {count or 'more than 10,000'} seeds{each}"
        for name, count in needed.items()
    )
    return (
        f"Power: with a standard deviation of {std:.5f} nats, a true difference of {needs}, to be found in "
        f"{POWER:.0%} of such experiments."
    )


def _machines(book: Ledger) -> dict[str, list[int]]:
    """The completed seeds by the kind of machine that trained them."""
    kinds: dict[str, list[int]] = {}
    for entry in book.completed():
        kinds.setdefault(entry.machine or "not known", []).append(entry.seed)
    return kinds


def _comparable(book: Ledger, other: Ledger) -> list[float]:
    """The other ledger's losses. Raises SpecError unless they are over the same tokens of the same text."""
    texts = {
        (e.figures.num_targets, e.figures.num_bytes)
        for ledger in (book, other)
        for e in ledger.completed()
        if e.figures
    }
    if len(texts) > 1:
        raise SpecError(
            f"against = {other.label}: its losses are not over the same tokens of the same text as those of "
            f"{book.label}, so they cannot be compared. Compare configurations with the same corpus, "
            "tokenizer and scoring"
        )
    return other.losses()
