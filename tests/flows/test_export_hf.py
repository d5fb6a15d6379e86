"""A run's model for Hugging Face Transformers: by command, from Python and by form."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner, Result

from flows.cli.main import app
from flows.export_hf import export_hf as export_by_form
from schemas.huggingface import FolderCheck
from schemas.runtime import RunOptions
from stages.generate import load
from stages.huggingface import export
from stages.huggingface.export import export_hf
from stages.store.store import Store


def fairway(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("weights", ["packed", "merged"])
def test_the_folder_holds_the_weights_of_the_run(
    weights: Any, smoke_run: Any, smoke_store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "made"
    made = fairway(
        "export-hf",
        smoke_run.report.run_id,
        "--weights",
        weights,
        "--out",
        out,
        "--store",
        smoke_store,
        "--json",
    )
    told = json.loads(made.stdout)
    assert told["files"] == {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    assert (told["source"], told["weights"]) == (smoke_run.report.name, weights)
    report = smoke_run.report
    assert told["val_bpb"] == (report.val_bpb_quantized if weights == "packed" else report.val_bpb_merged)
    model = load(report.run_id, store=smoke_store, weights=weights).model
    written = load_file(out / "model.safetensors")
    assert written.keys() == {f"model.{name}" for name in model.state_dict()}
    assert all(written[f"model.{name}"].equal(tensor) for name, tensor in model.state_dict().items())
    assert json.loads((out / "config.json").read_text())["context_tokens"] == 64


def test_the_card_tells_figures_data_and_audit_and_no_path(
    smoke_run: Any, smoke_store: Path, tmp_path: Path
) -> None:
    export_hf(Store(smoke_store), "last", "packed", tmp_path / "made")
    card, report = (tmp_path / "made" / "README.md").read_text(encoding="utf-8"), smoke_run.report
    head = card.split("---\n")[1]
    assert f"value: {round(report.val_bpb_quantized, 8)}" in head
    for text in (
        f"| val_bpb quantized | {report.val_bpb_quantized:.5f} |",
        report.tokenized.tokenizer_sha256,
        report.tokenized.val_shards[0].sha256,
        f"| training | {report.tokenized.train.num_documents} documents",
        report.audit.finding("xsa").evidence,
    ):
        assert text in card
    assert "| off |" not in card
    assert str(smoke_store) not in card
    assert str(tmp_path) not in card


def test_people_see_where_the_folder_is_and_what_reads_it(
    smoke_run: Any, smoke_store: Path, tmp_path: Path
) -> None:
    shown = fairway("export-hf", "--out", tmp_path / "made", "--store", smoke_store).stdout.splitlines()
    assert f"folder   {tmp_path / 'made'}" in shown
    assert "needs    pip install torch transformers sentencepiece" in shown


def test_the_check_reads_validation_text(
    smoke_run: Any, smoke_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(
        folder: Path, model: Any, pieces: Any, ids: Tensor, texts: list[str], python: str
    ) -> FolderCheck:
        assert ids.shape == (export.CHECKED_ROWS, 64)
        assert ids[0, 0] == 1
        assert texts == [pieces.decode(row) for row in ids.tolist()]
        with torch.inference_mode():
            assert model.hidden(ids).isfinite().all()
        return FolderCheck(transformers="5.0", num_tokens=ids.numel(), largest_difference=2e-7)

    monkeypatch.setattr(export, "transformers_python", lambda: "python")
    monkeypatch.setattr(export, "check_folder", look)
    shown = fairway("export-hf", "--check", "--out", tmp_path / "made", "--store", smoke_store).stdout
    assert "Transformers 5.0: ids equal, logits differ by 2.0e-07 at most, on 256 validation tokens" in shown


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--weights", "int6"], ["--weights = int6", "packed or merged"]),
        (["somke"], ["RUN = somke", "Did you mean smoke"]),
        (["--out", "."], ["--out = ", "is there already"]),
        (["--out", "/dev/null/model"], ["--out = /dev/null/model", "cannot be made"]),
    ],
)
def test_bad_input_is_answered_with_one_message_and_status_2(
    arguments: list[str], named: list[str], smoke_run: Any, smoke_store: Path
) -> None:
    result = fairway("export-hf", *arguments, "--store", smoke_store)
    assert result.exit_code == 2
    assert all(text in result.stderr for text in named), result.stderr


def test_the_form_writes_into_the_store_and_shows_the_card(
    smoke_run: Any, smoke_store: Path, api: str
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    made = export_by_form(weights="merged", options=RunOptions(store=str(smoke_store)))
    folder = smoke_store / "huggingface" / f"{smoke_run.report.name}-merged"
    assert made.folder == str(folder)
    with get_client(sync_client=True) as client:
        [artifact] = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["export-hf"]))
        )
    assert isinstance(artifact.data, str)
    assert artifact.data.startswith(f"Folder: `{folder}`\n\n\n# {smoke_run.report.name}")
