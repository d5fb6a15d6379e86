"""Finished runs in a store: `<store>/runs/<run id>/report.json`, one PipelineReport each.

It needs neither Prefect nor torch.
"""

import difflib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from schemas.base import SCHEMA_VERSION, fingerprint
from schemas.errors import SpecError, first_line
from schemas.files import StageRecord
from schemas.pipeline import PipelineReport, PipelineSpec
from schemas.stages import STAGES
from schemas.stopped import StoppedRun
from stages.core.checksummed import read_checksummed, write_checksummed
from stages.core.whole_files import write_whole
from stages.store.store import Store

log = logging.getLogger(__name__)

RunT = TypeVar("RunT", bound=PipelineReport | StoppedRun)

REPORT_NAME = "report.json"
RUN_FILE_NAME = "run.toml"
LAST = "last"
FIGURE_STAGES = ("tokenize_corpus", "train", "merge", "quantize", "evaluate")
"""The stages whose code decides a run's scores."""


def save_report(store: Path, report: PipelineReport) -> Path:
    """Write the report of a run, whole or not at all, in place of an earlier one of the same id; returns its
    path.
    """
    folder = store / "runs" / report.run_id
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / REPORT_NAME
    write_checksummed(path, report.model_dump_json(indent=1).encode())
    return path


def save_run_file(store: Path, report: PipelineReport, text: str) -> None:
    """Write the text that repeats the run beside its report and its page, and beside the folder `package`,
    whose bytes count.

    Several runs may have one package: the last one's file stays there. Raises OSError.
    """
    page, package = store / report.published.html.path, store / report.package.folder
    for folder in (store / "runs" / report.run_id, page.parent, package.parent):
        write_whole(folder / RUN_FILE_NAME, text.encode())


def load_report(store: Path, run_id: str) -> PipelineReport | None:
    """The report of the run with exactly this id; None if it has none.

    Raises SpecError for one that cannot be read.
    """
    path = store / "runs" / run_id / REPORT_NAME
    try:
        content = read_checksummed(path)
        version = json.loads(content).get("schema_version", 1)
        if version != SCHEMA_VERSION:
            raise SpecError(
                f"{path}: of another version of Fairway (records of version {version}, this one reads "
                f"{SCHEMA_VERSION}). Run its settings again: `fairway run --preset …`; then remove its folder"
            )
        return PipelineReport.model_validate_json(content)
    except FileNotFoundError as error:
        if not path.exists():
            return None
        raise SpecError(
            f"{path}: its checksum {error.filename} is missing. Remove its folder; the results stay stored"
        ) from error
    except (OSError, ValueError) as error:
        raise SpecError(
            f"{path}: damaged or of another version ({first_line(error)}). Remove its folder; the results "
            "stay stored"
        ) from error


def list_reports(store: Path) -> list[PipelineReport]:
    """The report of every finished run, the newest last.

    A report that cannot be read is named in the log and left out.
    """
    reports = []
    for folder in sorted((store / "runs").glob("*/")):
        try:
            report = load_report(store, folder.name)
        except SpecError as error:
            log.warning("%s", error)
            continue
        if report is not None:
            reports.append(report)
    return sorted(reports, key=lambda report: report.created_at)


def find_run(store: Path, wanted: str, fitting: bool = False) -> PipelineReport:
    """The run with this id or name, the beginning of either, or `last`. Of several with one name, the newest.

    `last` is the newest finished run; with `fitting` the newest whose artifact is within its limit. A whole
    id reads one report, everything else reads all. Raises SpecError if no run or several runs match.
    """
    if (store / "runs" / wanted) in (store / "runs").glob("*") and (report := load_report(store, wanted)):
        return report
    return choose_run(store, list_reports(store), wanted, fitting)


def choose_run(store: Path, reports: Sequence[RunT], wanted: str, fitting: bool = False) -> RunT:
    """Choose from `reports` of `store`, the newest last, as `find_run` does."""
    if exact := [report for report in reports if report.run_id == wanted]:
        return exact[0]
    if not reports:
        raise SpecError(f"RUN = {wanted}: the store {store} holds no finished run. `fairway run` makes one")
    if wanted == LAST:
        meant = [report for report in reports if not fitting or _fits(report)]
        if not meant:
            raise SpecError(
                f"RUN = {LAST}: no run of the store {store} is within its limit. Name a run; "
                "`fairway runs` lists all"
            )
        if meant[-1] is not reports[-1]:
            log.warning(
                "RUN = %s: %s is over its limit; using %s, the newest within its limit",
                LAST,
                reports[-1].name,
                meant[-1].name,
            )
        return meant[-1]
    if named := [report for report in reports if report.name == wanted]:
        return named[-1]
    begins = [
        report
        for report in reports
        if wanted and (report.run_id.startswith(wanted) or report.name.startswith(wanted))
    ]
    names = sorted({report.name for report in begins})
    if len(names) == 1:
        return begins[-1]
    if names:
        raise SpecError(
            f"RUN = {wanted}: matches {len(names)} runs: {', '.join(names)}. Give more of the name or the id"
        )
    known = [report.name for report in reports]
    near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.4) or known[-3:]
    raise SpecError(
        f"RUN = {wanted}: no such run. Did you mean {' or '.join(dict.fromkeys(near))}? `fairway "
        "runs` lists all"
    )


def named_runs(reports: Sequence[PipelineReport], found: PipelineReport, wanted: str) -> list[PipelineReport]:
    """The runs that `wanted` means where every run of a name is meant: `found`, or all runs of its name if
    `wanted` is the name or its beginning.
    """
    if wanted == LAST or found.run_id.startswith(wanted):
        return [found]
    return [report for report in reports if report.name == found.name]


def _fits(run: PipelineReport | StoppedRun) -> bool:
    return isinstance(run, PipelineReport) and run.size.fits


def require_files(store: Store, report: PipelineReport, needed: Any) -> None:
    """Raise SpecError if one of the files `needed` of an earlier run is missing or damaged."""
    for problem in store.problems(needed):
        raise SpecError(
            f"run = {report.name}: {problem}. Run the pipeline with its settings again: what is "
            "missing is made again"
        )


def records_of(store: Store, report: PipelineReport | StoppedRun) -> dict[str, StageRecord]:
    """By stage, the records of a run that the store still holds."""
    found = {
        stage.stage: store.record(STAGES[stage.stage], stage.key)
        for stage in report.stages
        if stage.stage in STAGES
    }
    return {name: record for name, record in found.items() if record is not None}


def without_seed(spec: PipelineSpec) -> str:
    """Fingerprint of a configuration, whatever its seed."""
    return fingerprint(spec.derive(train=replace(spec.train, seed=0)))


def seeds_of(store: Store, report: PipelineReport, others: Sequence[PipelineReport]) -> list[PipelineReport]:
    """`report` first, then the newest run of each other seed that has the same settings and was made by
    the same code. `others`: the newest last.
    """
    wanted, code = without_seed(report.spec), _code(store, report)
    found = {report.spec.train.seed: report}
    for other in reversed(others):
        seed = other.spec.train.seed
        if seed in found or without_seed(other.spec) != wanted:
            continue
        if code is None or _code(store, other) != code:
            log.warning(
                "seed %d of %s was made by other code, or its records are gone: left out", seed, other.name
            )
            continue
        found[seed] = other
    return list(found.values())


def _code(store: Store, report: PipelineReport) -> tuple[str, ...] | None:
    """Digests of the code behind the figures; None when a record is gone."""
    keys = {stage.stage: stage.key for stage in report.stages}
    records = [store.record(STAGES[name], keys[name]) for name in FIGURE_STAGES if name in keys]
    return tuple(record.provenance.code_sha256 for record in records if record) if all(records) else None


def named_after(store: Path, wanted: str, suffix: str, fitting: bool = False) -> str:
    """The name of a flow run that works on an earlier run. If that is not found, the flow itself reports the
    error.
    """
    try:
        return f"{find_run(store, wanted, fitting).name}-{suffix}"
    except SpecError:
        return f"{wanted}-refused"
