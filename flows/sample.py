"""Text that a run's model writes, from a form: the deployment `sample`.

`fairway sample` does the same in a terminal.
"""

import logging
from typing import Annotated

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run
from pydantic import Field

from flows.inputs.form import Options, with_empty_fields
from flows.inputs.specs import run_options
from flows.results.samples import sample_markdown
from flows.tasks.showing import only_shown
from flows.tasks.stage_task import stream_logs
from flows.tasks.tries import begin_try
from schemas.sample import Sample, SamplingSettings, Weights
from stages.generate import load
from stages.generate import sample as write
from stages.store.runs import find_run, named_after
from stages.store.store import open_store

log = logging.getLogger(__name__)


def _run_name() -> str:
    given = flow_run.parameters
    return named_after(open_store(run_options(given["options"])).runs_root(), given["run"], "sample")


@with_empty_fields
@flow(name="sample", flow_run_name=_run_name, persist_result=False)
def sample(
    run: str = "last",
    prompt: str = "",
    tokens: Annotated[int, Field(ge=1, le=2_000)] = 200,
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.8,
    top_k: Annotated[int, Field(ge=0)] = 50,
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1,
    count: Annotated[int, Field(ge=1, le=16)] = 3,
    weights: Weights = "packed",
    options: Options = None,
) -> Sample:
    """Let the model of a run continue a text.

    Args:
        run: The run: its name or id, the beginning of either, or "last" for the newest.
        prompt: The text to continue. Empty: the model begins a document.
        tokens: Tokens to write at most.
        temperature: Logits are divided by it. 0: the likeliest token each time.
        top_k: Only so many of the likeliest tokens count. 0: all.
        seed: Random numbers of the first text; the next texts have the seeds after it.
        count: Texts to write.
        weights: packed: the compressed model that the package contains. merged: before quantization.
        options: Where the store is; retries and times count for nothing here.
    """
    stream_logs()
    options = begin_try(options)
    store = open_store(options)
    report = find_run(store.runs_root(), run)
    settings = SamplingSettings(tokens=tokens, temperature=temperature, top_k=top_k, seed=seed, count=count)
    generator = load(report.run_id, store=store.root, remote=options.remote or "", weights=weights)
    made = write(generator, weights, prompt, settings)
    log.info("%s: %d texts in %.1f s", report.name, count, made.seconds)
    with only_shown("the texts"):
        create_markdown_artifact(
            key="sample", markdown=sample_markdown(made), description=f"what {report.name} writes"
        )
    return made
