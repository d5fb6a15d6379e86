"""A configuration with and without some of its techniques: which variants there are, and what their runs
show.

Imports neither Prefect nor torch.
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
    """A configuration, the settings that make it of the run's, and of each seed the report, or why its
    run failed.
    """

    name: str
    changes: tuple[str, ...]
    reports: dict[int, PipelineReport | str]

    def completed(self) -> dict[int, PipelineReport]:
        return {seed: report for seed, report in self.reports.items() if isinstance(report, PipelineReport)}


def plan_variants(spec: PipelineSpec, off: tuple[str, ...]) -> list[tuple[str, tuple[str, ...]]]:
    """Name and settings of each variant.

    Raises SpecError for an unknown technique and for one that `spec` has off already.
    """
    wanted = [key for key in off if key != EVERY_ONE]
    if EVERY_ONE in off:
        wanted += [technique.key for technique in TECHNIQUES if technique.is_on(spec)]
    if not wanted:
        raise SpecError(
            f"off: name at least one technique, or {EVERY_ONE}; there are "
            f"{', '.join(item.key for item in TECHNIQUES)}"
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
    """The run itself first, then each variant against it over the seeds that both completed."""
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
    ours, theirs = [_score(reports[seed]) for seed in both], [_score(whole[seed]) for seed in both]
    nats_per_bpb = 1 / nats_to_bpb(1.0, *_text(whole[both[0]]))
    mean = fmean(ours) - fmean(theirs)
    row |= {"difference": f"{mean:+.5f}", "nats a token": f"{mean * nats_per_bpb:+.5f}"}
    found = paired_difference(ours, theirs)
    if found is None:
        return row | {"finding": "one seed shows no spread: take more (--seeds)"}
    return row | {
        "95 % interval": f"{found.low:+.5f} to {found.high:+.5f}",
        "finding": _finding(found.mean, found.std, found.is_shown),
    }


def _finding(mean: float, std: float, is_shown: bool) -> str:
    if is_shown:
        return "worse without: it helps" if mean > 0 else "better without: it hurts"
    if mean == 0:
        return "no difference at all"
    needed = seeds_needed(abs(mean), std, _ALPHA, two_sided=True)
    return (
        f"not shown: 0 is in the interval; {f'about {needed}' if needed else 'more than 10,000'} "
        "seeds would show this difference"
    )


def _score(report: PipelineReport) -> float:
    """Bits per byte of what ships, by sliding windows where they were scored."""
    return report.val_bpb_quantized_sliding or report.val_bpb_quantized


def _text(report: PipelineReport) -> tuple[int, int]:
    return report.evaluation.non_overlapping.num_targets, report.evaluation.non_overlapping.num_bytes
