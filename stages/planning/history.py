"""Results of earlier runs in a store, by which seconds and reasons are estimated.

Only what lies on this machine counts: seconds of other machines do not compare.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import SpecError
from schemas.files import StageRecord
from schemas.pipeline import PipelineReport
from schemas.stages import Stage
from stages.core.checksummed import read_checksummed
from stages.store.runs import REPORT_NAME, load_report
from stages.store.store import RECORD_NAME, Store

log = logging.getLogger(__name__)

MOST_RECORDS = 24
"""More would only make the plan slower: a record of training has tens of kilobytes."""


@dataclass(frozen=True)
class EarlierResult:
    """A result of a stage, and the run that it was used in."""

    record: StageRecord
    run: PipelineReport


def newest_records(root: Path, stage: Stage) -> list[StageRecord]:
    """The newest records of the stage in the store `root`, the newest first; their files are not checked.

    Those of other versions and damaged ones are left out.
    """
    records = []
    for path in _newest((root / "stages" / stage.name).glob(f"*/{RECORD_NAME}")):
        if (record := _read(stage, path)) is not None:
            records.append(record)
    return records


def newest_reports(root: Path) -> list[PipelineReport]:
    """The reports of the newest finished runs in the store `root`, the newest first."""
    reports = []
    for path in _newest((root / "runs").glob(f"*/{REPORT_NAME}")):
        try:
            report = load_report(root, path.parent.name)
        except SpecError as error:
            log.debug("left out: %s", error)
            continue
        if report is not None:
            reports.append(report)
    return reports


def earlier_results(store: Store, reports: Sequence[PipelineReport], stage: Stage) -> list[EarlierResult]:
    """What the runs of `reports` used of the stage, each result once, in their order."""
    found: dict[str, EarlierResult] = {}
    for report in reports:
        for used in report.stages:
            if used.stage != stage.name or used.key in found:
                continue
            record = _read(stage, store.folder(stage, used.key) / RECORD_NAME)
            if record is not None:
                found[used.key] = EarlierResult(record, report)
    return list(found.values())


def _read(stage: Stage, path: Path) -> StageRecord | None:
    try:
        return stage.record_type().model_validate_json(read_checksummed(path))
    except (OSError, ValueError) as error:
        log.debug("%s: left out: %s", path, error)
        return None


def _newest(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=_written, reverse=True)[:MOST_RECORDS]


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # removed meanwhile
        return 0.0
