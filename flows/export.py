"""A finished run as a submission folder, from a form: the deployment `export`.

`fairway export` does the same in a terminal.
"""

import logging
from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.runtime import flow_run
from pydantic import Field

from flows.inputs.form import Options, with_empty_fields
from flows.tasks.showing import only_shown
from flows.tasks.stage_task import stream_logs
from flows.tasks.tries import begin_try
from schemas.errors import StageError
from schemas.submission import GITHUB_ID, ONE_LINE
from stages.store.store import open_store
from stages.submission.inputs import about_of, write_submission

log = logging.getLogger(__name__)


@with_empty_fields
@flow(name="export", flow_run_name=lambda: f"export-{flow_run.parameters['run']}", persist_result=False)
def export(
    author: Annotated[str, Field(pattern=ONE_LINE)],
    github_id: Annotated[str, Field(pattern=GITHUB_ID)],
    name: Annotated[str, Field(pattern=ONE_LINE)],
    run: str = "last",
    blurb: str = "",
    folder: str = "",
    only_this_seed: bool = False,
    options: Options = None,
) -> str:
    """Write a finished run as a submission folder of the official shape, and check it against the
    published rules.

    Args:
        author: Your name, as submission.json and the README shall have it.
        github_id: Your account on GitHub, without the @ sign.
        name: Title of the submission, one line.
        run: The run: its name or id, the beginning of either, or "last" for the last successful one.
        blurb: One or two sentences about it. Empty: made from the settings.
        folder: Where to write it on the worker's machine. Empty: submissions/ and the run's name, in the
            store.
        only_this_seed: Leave out the other seeds of the same settings and code.
        options: Where the store is; retries and times count for nothing here.
    """
    stream_logs()
    store = open_store(begin_try(options))
    made = write_submission(
        store, run, about_of(author, github_id, name, blurb), Path(folder) if folder else None, only_this_seed
    )
    with only_shown("rules and README of the submission"):
        rows = [{"rule": rule.rule, "verdict": rule.verdict, "reason": rule.reason} for rule in made.rules]
        create_table_artifact(
            key="submission-rules", table=rows, description="the published rules, applied to the folder"
        )
        readme = (made.folder / "README.md").read_text(encoding="utf-8")
        create_markdown_artifact(
            key="submission",
            markdown=f"Folder: `{made.folder}`\n\n{readme}",
            description="the folder's README",
        )
    broken = [f"{rule.rule}: {rule.reason}" for rule in made.rules if rule.verdict == "fail"]
    if broken:
        raise StageError(f"{made.folder} is written, but breaks rules:\n" + "\n".join(broken))
    return str(made.folder)
