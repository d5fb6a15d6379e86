"""Ablation variants: the configurations without a technique, and the comparison of their runs.

It imports neither Prefect nor torch.
"""

from dataclasses import dataclass
from statistics import fmean

from flows.results.tables import Row
from schemas.errors import SpecError
from schemas.overrides import apply_overrides
from schemas.pipeline import PipelineReport, PipelineSpec
from schemas.techniques import TECHNIQUES, find_technique
from stages.report.rows import bpb
from stages.seeds.statistics import nats_to_bpb, paired_difference, seeds_needed

EVERY_ONE = "all"
_ALPHA = 0.05


@dataclass(frozen=True)
class Variant:
    """A configuration: its settings that differ from the run's, and for each seed the report or the error."""

    name: str
    changes: tuple[str, ...]
    reports: dict[int, PipelineReport | str]

    def completed(self) -> dict[int, PipelineReport]:
        return {seed: report for seed, report in self.reports.items() if isinstance(report, PipelineReport)}


def plan_variants(spec: PipelineSpec, off: tuple[str, ...]) -> list[tuple[str, tuple[str, ...]]]:
    """Name and settings of each variant.

    Raises SpecError for an unknown technique and for one that is already off in `spec`.
    """
    wanted = [key for key in off if key != EVERY_ONE]
    if EVERY_ONE in off:
        wanted += [technique.key for technique in TECHNIQUES if technique.is_on(spec)]
    if not wanted:
        raise SpecError(
            f"off: name at least one technique, or {EVERY_ONE}; there are "
            f"{', '.join(known.key for known in TECHNIQUES)}"
        )
    plan = {}
    for name in wanted:
        techniques = [find_technique(key) for key in name.split("+")]
        for technique in techniques:
            if not technique.is_on(spec):
                raise SpecError(
                    f"off = {technique.key}: the run has {technique.title} off already; leave it out"
                )
        plan[f"without {name}"] = tuple(
            setting for technique in techniques for setting in technique.off(spec)
        )
        apply_overrides(spec, plan[f"without {name}"])
    return list(plan.items())


def ablation_rows(variants: list[Variant]) -> list[Row]:
    """The run itself first, then each variant compared with it over the seeds that both completed."""
    whole = variants[0].completed()
    return [_row(variant, whole) for variant in variants]


def _row(variant: Variant, whole: dict[int, PipelineReport]) -> Row:
    reports = variant.completed()
    both = sorted(set(whole) & set(reports))
    row = {
        "variant": variant.name,
        "seeds": str(len(reports)),
        "val_bpb": bpb(fmean(_score(report) for report in reports.values())) if reports else "–",
        "difference": "",
        "95 % interval": "",
        "nats a token": "",
        "bytes": f"{fmean(report.size.total_bytes for report in reports.values()):,.0f}" if reports else "–",
        "finding": "",
    }
    if not variant.changes or not both:
        return row | {"finding": "" if reports else "no seed completed"}
    pairs = [_beside(reports[seed], whole[seed], variant.changes) for seed in both]
    ours, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    nats_per_bpb = 1 / nats_to_bpb(1.0, *_text(whole[both[0]]))
    mean = fmean(ours) - fmean(theirs)
    row |= {"difference": f"{mean:+.5f}", "nats a token": f"{mean * nats_per_bpb:+.5f}"}
    paired = paired_difference(ours, theirs)
    if paired is None:
        return row | {"finding": "one seed has no standard deviation: use more (--seeds)"}
    return row | {
        "95 % interval": f"{paired.low:+.5f} to {paired.high:+.5f}",
        "finding": _finding(paired.mean, paired.std, paired.is_shown),
    }


def _finding(mean: float, std: float, is_shown: bool) -> str:
    if is_shown:
        return "worse without: it helps" if mean > 0 else "better without: it hurts"
    if mean == 0:
        return "no difference at all"
    needed = seeds_needed(abs(mean), std, _ALPHA, two_sided=True)
    seeds = f"about {needed}" if needed else "more than 10,000"
    return f"not shown: 0 is in the interval; {seeds} seeds would show this difference"


def _score(report: PipelineReport) -> float:
    """Bits per byte of the packaged model, by sliding windows if they were scored."""
    return report.val_bpb_quantized_sliding or report.val_bpb_quantized


def _beside(report: PipelineReport, whole: PipelineReport, changes: tuple[str, ...]) -> tuple[float, float]:
    """The variant's bits per byte and those of the run itself. Test-time training has a score of its own,
    which says what the same windows give without.
    """
    learned = whole.evaluation.test_time_training
    if learned and learned.adapted and changes == find_technique("test-time-training").off(whole.spec):
        return learned.without.bpb, learned.adapted.bpb
    return _score(report), _score(whole)


def _text(report: PipelineReport) -> tuple[int, int]:
    return report.evaluation.non_overlapping.num_targets, report.evaluation.non_overlapping.num_bytes
