"""The comparison of runs as files: one page without outside requests, and a CSV table.

Imports neither Prefect nor torch.
"""

import csv
import io
import logging
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import stages.report
from flows.results.compared import AnyRun, csv_rows, tables
from schemas.compare import ComparedRuns
from schemas.errors import SpecError
from schemas.stopped import StoppedRun
from stages.core.whole_files import write_whole
from stages.report import hover
from stages.report.curves_plot import CURVE_COLUMNS, curves_svg
from stages.store.store import Store
from stages.training.metrics import Columns, read_metrics

log = logging.getLogger(__name__)

_TEMPLATES = (Path(__file__).parent, Path(stages.report.__file__).parent)


def read_curves(store: Store, found: ComparedRuns, reports: Sequence[AnyRun]) -> list[tuple[str, Columns]]:
    """Name and metrics of each run whose metrics are still there and sound; the log names the others."""
    curves = []
    for run, report in zip(found.runs, reports, strict=True):
        ref = report.metrics if isinstance(report, StoppedRun) else report.trained.metrics
        if problem := next(store.problems(ref), None):
            log.warning("%s has no curve: %s", run.name, problem)
            continue
        curves.append((f"{run.label}  {run.name}", read_metrics(store.fetch(ref), CURVE_COLUMNS)))
    return curves


def page(found: ComparedRuns, curves: Sequence[tuple[str, Columns]], everything: bool = False) -> str:
    """The whole page; its colours follow the reader's choice of light or dark."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    style, scripts, policy = hover.assets()
    return environment.get_template("compare.html").render(
        title=f"{len(found.runs)} runs compared",
        names=[f"{run.label} {run.name}" for run in found.runs],
        conclusions=found.conclusions,
        curves=hover.hoverable(curves_svg(curves, themed=True), [hover.curves_chart(curves)])
        if curves
        else "",
        hover_style=style,
        hover_scripts=scripts,
        policy=policy,
        tables=tables(found, everything),
    )


def csv_text(found: ComparedRuns, everything: bool = False) -> str:
    """The rows of `csv_rows`, comma-separated, in UTF-8 with a line feed after each."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(csv_rows(found, everything))
    return text.getvalue()


def write_file(path: Path, content: str | bytes, option: str) -> None:
    """Write a file, whole or not at all; text as UTF-8.

    Raises SpecError, naming `option`, where it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise SpecError(
            f"{option} = {path}: cannot be written ({error.strerror or error}). Give another path"
        ) from error
