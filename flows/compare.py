"""Runs side by side, from a form: the deployment `compare`.

`fairway compare` does the same in a terminal.
"""

import base64
import logging
from pathlib import Path

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.inputs.form import Options, with_empty_fields
from flows.results.compared import compare_runs, find_runs, tables
from flows.results.compared_page import page, read_curves, write_file
from flows.tasks.showing import only_shown
from flows.tasks.stage_task import stream_logs
from flows.tasks.tries import begin_try
from schemas.compare import ComparedRuns
from stages.report.curves_plot import curves_svg
from stages.report.rows import markdown_table
from stages.store.runs import list_reports
from stages.store.store import open_store
from stages.training.metrics import Columns

log = logging.getLogger(__name__)


@with_empty_fields
@flow(name="compare", persist_result=False)
def compare(
    runs: tuple[str, ...],
    all_settings: bool = False,
    file: str = "",
    options: Options = None,
) -> ComparedRuns:
    """Lay runs side by side: settings that differ, why stages ran again, figures, verdicts and curves.

    Args:
        runs: Two or more runs: their names or ids, the beginning of either, or "last" for the newest.
        all_settings: Show settings and verdicts that are equal, too.
        file: Where the page is written on the worker's machine. Empty: comparisons/ and the runs' ids, in
            the store.
        options: Where the store is; retries and times count for nothing here.
    """
    stream_logs()
    store = open_store(begin_try(options))
    finished = list_reports(store.runs_root())
    reports = find_runs(store, finished, runs)
    found = compare_runs(store, reports, finished)
    curves = read_curves(store, found, reports)
    name = "-".join(run.run_id[:8] for run in found.runs)
    path = Path(file).expanduser() if file else store.root / "comparisons" / f"{name}.html"
    write_file(path, page(found, curves, all_settings), "file")
    log.info("page: %s", path)
    with only_shown("the comparison"):
        _publish(found, curves, all_settings, path)
    return found


def _publish(found: ComparedRuns, curves: list[tuple[str, Columns]], everything: bool, path: Path) -> None:
    """All tables on one page, the training curves, and the settings that differ as a table of their own."""
    _, settings, *_ = shown = tables(found, everything)
    lines = ["# " + " and ".join(run.name for run in found.runs), "", f"Page: `{path}`", ""]
    lines += [f"- {sentence}" for sentence in found.conclusions]
    if curves:
        picture = base64.b64encode(curves_svg(curves, themed=False).encode()).decode()
        lines += ["", f"![training loss](data:image/svg+xml;base64,{picture})"]
    for table in shown:
        lines += ["", f"## {table.title}", ""]
        if table.rows:
            lines.append(markdown_table(table.columns, table.rows))
    create_markdown_artifact(key="compared", markdown="\n".join(lines), description="runs side by side")
    if settings.rows:
        create_table_artifact(
            key="compared-settings", table=settings.dicts(), description="the settings that differ"
        )
