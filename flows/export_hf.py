"""A run's model for Hugging Face Transformers, from a form: the deployment `export-hf`.

`fairway export-hf` does the same in a terminal.
"""

from pathlib import Path

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from flows.inputs.form import Options, with_empty_fields
from flows.inputs.specs import run_options
from flows.tasks.showing import only_shown
from flows.tasks.stage_task import stream_logs
from flows.tasks.tries import begin_try
from schemas.huggingface import HuggingFaceFolder
from schemas.sample import Weights
from schemas.submission import README_NAME
from stages.huggingface.export import export_hf as write
from stages.store.runs import named_after
from stages.store.store import open_store


def _run_name() -> str:
    given = flow_run.parameters
    return named_after(open_store(run_options(given["options"])).runs_root(), given["run"], "export-hf")


@with_empty_fields
@flow(name="export-hf", flow_run_name=_run_name, persist_result=False)
def export_hf(
    run: str = "last",
    weights: Weights = "packed",
    folder: str = "",
    check: bool = False,
    options: Options = None,
) -> HuggingFaceFolder:
    """Write a run's model as a folder that Hugging Face Transformers loads.

    Args:
        run: The run: its name or id, the beginning of either, or "last" for the newest.
        weights: packed: the compressed model that the package contains. merged: before quantization.
        folder: Where to write it on the worker's machine. Empty: huggingface/ and the run's name, in the
            store.
        check: Load the folder with Transformers, if it is installed, and compare logits and ids.
        options: Where the store is; retries and times count for nothing here.
    """
    stream_logs()
    made = write(open_store(begin_try(options)), run, weights, Path(folder) if folder else None, check)
    with only_shown("the model card"):
        card = (Path(made.folder) / README_NAME).read_text(encoding="utf-8")
        _, _, text = card.split("---\n", 2)  # the card's head is YAML for the hub
        create_markdown_artifact(
            key="export-hf",
            markdown=f"Folder: `{made.folder}`\n\n{text}",
            description="the folder's model card",
        )
    return made
