"""Finished runs in a store: `<store>/runs/<run id>/report.json`, one PipelineReport each. Needs neither Prefect nor torch."""

import difflib
import json
import logging
from collections.abc import Callable
from pathlib import Path

from schemas.base import SCHEMA_VERSION
from schemas.errors import SpecError
from schemas.pipeline import PipelineReport
from stages.sealed import read_sealed, write_sealed

log = logging.getLogger(__name__)

REPORT_NAME = "report.json"


def save_report(store: Path, report: PipelineReport) -> Path:
    """Write the report of a run in place of an earlier one of the same id, whole or not at all; returns its path."""
    folder = store / "runs" / report.run_id
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / REPORT_NAME
    write_sealed(path, report.model_dump_json(indent=1).encode())
    return path


def load_report(store: Path, run_id: str) -> PipelineReport | None:
    """The report of the run with exactly this id; None if it left none. Raises SpecError for one that cannot be read."""
    path = store / "runs" / run_id / REPORT_NAME
    try:
        content = read_sealed(path)
        version = json.loads(content).get("schema_version", 1)
        if version != SCHEMA_VERSION:
            raise SpecError(
                f"{path}: of another version of Fairway (records of version {version}, this one reads {SCHEMA_VERSION}). Run its settings "
                "again: `fairway run --preset …`; then remove its folder"
            )
        return PipelineReport.model_validate_json(content)
    except FileNotFoundError as error:
        if not path.exists():
            return None
        raise SpecError(f"{path}: its seal {error.filename} is missing. Remove its folder; the results stay stored") from error
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise SpecError(f"{path}: damaged or of another version ({first}). Remove its folder; the results stay stored") from error


def list_reports(store: Path) -> list[PipelineReport]:
    """Every run that finished, the newest last. A report that cannot be read is named in the log and left out."""
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


def last_successful(store: Path) -> PipelineReport:
    """The newest run whose artifact fits its limit. Raises SpecError when there is none."""
    fitting = [report for report in list_reports(store) if report.size.fits]
    if not fitting:
        raise SpecError(f"RUN = last: the store {store} holds no successful run. `fairway run` makes one")
    return fitting[-1]


def named_after(run: str, find: Callable[[], PipelineReport], suffix: str) -> str:
    """What a flow run is called that works on an earlier run; where that is not found, the flow itself will say why."""
    try:
        return f"{find().name}-{suffix}"
    except SpecError:
        return f"{run}-refused"


def find_report(store: Path, wanted: str) -> PipelineReport:
    """The run with this id or name, the beginning of either, or `last`. Of several with one name, the newest.

    Raises SpecError when no run or more than one is meant.
    """
    reports = list_reports(store)
    if not reports:
        raise SpecError(f"RUN = {wanted}: the store {store} holds no finished run. `fairway run` makes one")
    if wanted == "last":
        return reports[-1]
    for exact in (lambda r: r.run_id == wanted, lambda r: r.name == wanted):
        if matching := [report for report in reports if exact(report)]:
            return matching[-1]
    begins = [report for report in reports if wanted and (report.run_id.startswith(wanted) or report.name.startswith(wanted))]
    names = sorted({report.name for report in begins})
    if len(names) == 1:
        return begins[-1]
    if names:
        raise SpecError(f"RUN = {wanted}: stands for {len(names)} runs: {', '.join(names)}. Give more of the name or the id")
    known = [report.name for report in reports]
    near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.4) or known[-3:]
    raise SpecError(f"RUN = {wanted}: no such run. Did you mean {' or '.join(dict.fromkeys(near))}? `fairway runs` lists all")
