"""A run and what only it needs, listed or removed, from a form: the deployment `forget-run`.

`fairway forget` does the same in a terminal.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from flows.inputs.form import Options, with_empty_fields
from flows.inputs.specs import run_options
from flows.tasks.showing import only_shown
from flows.tasks.tries import begin_try
from schemas.errors import SpecError
from stages.report.rows import markdown_table
from stages.store.housekeeping import Unneeded, find_forgotten, forget
from stages.store.runs import choose_run, list_reports, named_after, named_runs
from stages.store.store import open_store

log = logging.getLogger(__name__)


def _run_name() -> str:
    given = flow_run.parameters
    with open_store(run_options(given["options"])) as store:  # left open, it would count as another user
        return named_after(store.runs_root(), given["run"], "forget")


@with_empty_fields
@flow(name="forget-run", flow_run_name=_run_name, persist_result=False)
def forget_run(run: str, confirm: str = "", options: Options = None) -> list[str]:
    """List what only this run needs, or remove it with the run; never while another run is in progress.

    Returns the paths in the store.

    Args:
        run: The run: its id or the beginning of it, or its name for all runs of that name.
        confirm: The whole name of the run, typed again, removes it. Empty: its results are only listed.
        options: Where the store is; retries and times count for nothing here.
    """
    with open_store(begin_try(options)) as store:
        place = store.runs_root()
        reports = list_reports(place)
        found = choose_run(place, reports, run)
        meant = named_runs(reports, found, run)
        if confirm.strip() not in ("", found.name):
            raise SpecError(
                f"confirm = {confirm}: is not the name of the run. Type {found.name} to remove it, or "
                "nothing to see what would be removed"
            )
        remove = bool(confirm.strip())
        items = (forget if remove else find_forgotten)(store, meant)
        said = "was removed" if remove else f"would be removed. To remove it, type {found.name} into confirm"
        count = f"{len(meant)} run{'s' if len(meant) > 1 else ''} of the name {found.name}"
        log.info("%s: %d files and folders: %s", count, len(items), said)
        with only_shown("what only the run needs"):
            lines = [f"# {count}", f"This {said}:", _table(items, store.root)]
            create_markdown_artifact(
                key="forget", markdown="\n\n".join(lines), description=f"what only {found.name} needs"
            )
    return [str(item.path) for item in items]


def _table(items: Sequence[Unneeded], root: Path) -> str:
    rows = [[str(item.path.relative_to(root)), f"{item.num_bytes:,}", item.reason] for item in items]
    total = ["in all", f"{sum(item.num_bytes for item in items):,}", ""]
    return markdown_table(["path", "bytes", "why"], [*rows, total])
