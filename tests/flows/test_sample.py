"""What a run's model writes: by command, by form, and in the report."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flows.cli.main import app
from flows.sample import sample
from schemas.runtime import RunOptions
from schemas.sample import REPORT_SAMPLING
from stages.generate import load

PROMPT = "My fellow citizens"


def fairway(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_run_continues_a_text_the_same_in_another_process(smoke_run: Any, smoke_store: Path) -> None:
    asked = [
        "sample",
        smoke_run.report.run_id,
        "--prompt",
        PROMPT,
        "--tokens",
        "30",
        "--count",
        "2",
        "--json",
    ]
    command = [sys.executable, "-c", "from flows.cli.main import main; main()", *asked]
    answer = subprocess.run(
        [*command, "--store", str(smoke_store)], capture_output=True, text=True, check=True
    )
    told = json.loads(answer.stdout)
    here = load(smoke_run.report.run_id, store=smoke_store).generate(PROMPT, tokens=30, count=2)
    assert told["continuations"] == [item.model_dump() for item in here]
    assert (told["source"], told["weights"]) == (smoke_run.report.name, "packed")
    assert told["context_tokens"] == smoke_run.report.spec.train.data.sequence_length


def test_people_see_the_text_after_its_prompt(smoke_run: Any, smoke_store: Path) -> None:
    asked = ("sample", "--prompt", PROMPT, "--tokens", 30, "--seed", 7, "--store", smoke_store)
    shown = fairway(*asked).stdout
    [written] = load("last", store=smoke_store).generate(PROMPT, tokens=30, seed=7)
    assert "".join((PROMPT + written.text).split()) in "".join(shown.split())
    assert "seed 7, 30 tokens" in shown


def test_merged_weights_are_the_merged_models(smoke_run: Any, smoke_store: Path) -> None:
    models = [load("last", store=smoke_store, weights=weights).model for weights in ("packed", "merged")]
    packed, merged = (dict(model.named_parameters())["blocks.0.mlp.up.weight"] for model in models)
    assert not packed.equal(merged)
    assert packed.allclose(merged, atol=0.05)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--tokens", "0"], ["--tokens = 0"]),
        (["--temperature", "-1"], ["--temperature = -1"]),
        (["--temperature", "nan"], ["--temperature = nan"]),
        (["--top-k", "-2"], ["--top-k = -2"]),
        (["--count", "65"], ["--count = 65"]),
        (["--weights", "int6"], ["--weights = int6", "packed or merged"]),
        (["--tokenizer", "x.model"], ["--tokenizer = x.model", "a run has its own"]),
        (["./nowhere"], ["FOLDER", "no such folder"]),
        (["somke"], ["RUN = somke", "Did you mean smoke"]),
    ],
)
def test_bad_input_is_answered_with_one_message_and_status_2(
    arguments: list[str], named: list[str], smoke_run: Any, smoke_store: Path
) -> None:
    result = fairway("sample", *arguments, "--store", smoke_store)
    assert result.exit_code == 2
    assert all(text in result.stderr for text in named), result.stderr
    assert "Traceback" not in result.output


def test_the_form_leaves_the_texts_on_the_runs_page(smoke_run: Any, smoke_store: Path, api: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    made = sample(run="last", prompt=PROMPT, tokens=20, count=2, options=RunOptions(store=str(smoke_store)))
    assert list(made.continuations) == load("last", store=smoke_store).generate(PROMPT, tokens=20, count=2)
    with get_client(sync_client=True) as client:
        [artifact] = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["sample"]))
        )
    assert isinstance(artifact.data, str)
    for item in made.continuations:
        first = (PROMPT + item.text).splitlines()[0]
        assert f"    {first}" in artifact.data


def test_the_report_shows_how_both_models_continue_validation_documents(
    smoke_run: Any, smoke_store: Path
) -> None:
    """The first text of each is what `fairway sample` gives for the same start, weights and seed."""
    report = smoke_run.report
    page = (smoke_store / report.published.html.path).read_text(encoding="utf-8")
    assert '<section id="written"><h2>What it writes</h2>' in page
    first, *_ = report.audit.written
    assert first.prompt
    assert first.document
    for weights, told in (("merged", first.merged), ("packed", first.quantized)):
        model = load(report.run_id, store=smoke_store, weights=weights)
        ids = model.tokenizer.encode(first.prompt)
        [written] = model.continue_tokens([[1, *ids]], REPORT_SAMPLING)
        assert model.text_after(ids, written) == told
