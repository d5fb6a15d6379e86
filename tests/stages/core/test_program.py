"""A blob is data from strangers: one that describes another model is refused before anything of its size
is made.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch

from schemas.compute_settings import ComputeSettings
from schemas.errors import SpecError
from schemas.model_settings import ModelSettings
from schemas.quantizer_settings import GptqLite
from schemas.recipe import Recipe
from schemas.scoring_settings import ScoringSettings
from stages.core.blob.packing import BlobError, pack
from stages.core.calibrated.whole_model import quantize_state
from stages.core.model import GPT
from stages.core.program import evaluate_blob, load_packed_model, submission_parser, train_blob
from stages.core.shards import ShardWriter
from stages.submission.rescore import rescore


def blob(folder: Path, model: GPT, metadata: dict) -> Path:
    path = folder / "model.fwz"
    path.write_bytes(pack(quantize_state(dict(model.state_dict()), GptqLite()), metadata, 3))
    return path


@pytest.fixture
def model(tiny_model: ModelSettings) -> GPT:
    model = GPT(tiny_model)
    model.init_weights(0)
    return model


def test_a_packed_model_comes_back_close_to_what_it_was(tmp_path: Path, model: GPT) -> None:
    loaded = load_packed_model(blob(tmp_path, model, {"model": asdict(model.settings)}), torch.device("cpu"))
    for (name, a), b in zip(model.named_parameters(), loaded.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.05, msg=name)
    ids = torch.arange(3, 19)[None]
    assert torch.isfinite(loaded(ids[:, :-1], ids[:, 1:]))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "does not describe a model"),
        ({"model": {"num_layers": "many"}}, "does not describe a model"),
        ({"model": {"layers": 3}}, "no field 'layers'"),
        ({"mlp_hidden": 1 << 40}, "the settings ask for shape"),
        ({"num_layers": 4}, "the blob has None"),
    ],
)
def test_a_blob_whose_settings_do_not_fit_is_refused(
    tmp_path: Path, model: GPT, metadata: dict, message: str
) -> None:
    if metadata and "model" not in metadata:
        metadata = {"model": asdict(model.settings) | metadata}
    with pytest.raises(BlobError, match=message):
        load_packed_model(blob(tmp_path, model, metadata), torch.device("cpu"))


@pytest.fixture
def with_other_bos(tmp_path: Path) -> list[str]:
    """Options of the packaged program: one shard, and a tokenizer whose BOS has the id 2."""
    with ShardWriter(tmp_path, "val") as writer:
        writer.write(np.array([2, 5, 6], np.uint16))
    text = iter(["the cat sat on the mat"] * 20)
    ids = {"pad_id": 0, "bos_id": 2, "eos_id": 1, "unk_id": 3}
    options = {
        "model_prefix": str(tmp_path / "other"),
        "model_type": "bpe",
        "vocab_size": 272,
        "byte_fallback": True,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=text, **(options | ids))
    shards = str(tmp_path / "fineweb_val_*.bin")
    return [
        "--train",
        shards,
        "--val",
        shards,
        "--tokenizer",
        str(tmp_path / "other.model"),
        "--device",
        "cpu",
    ]


def test_the_program_refuses_a_tokenizer_with_another_bos_before_it_works(
    tmp_path: Path, with_other_bos: list[str]
) -> None:
    options = submission_parser(None).parse_args(with_other_bos)
    with pytest.raises(SystemExit, match=r"--tokenizer .*other\.model: its BOS has the id 2.*need id 1"):
        evaluate_blob(options, tmp_path / "no such blob", print)
    with pytest.raises(SystemExit, match=r"--tokenizer .*need id 1"):
        train_blob(Recipe.__new__(Recipe), options, tmp_path / "blob", print)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("--attention-window 16 --stride 8", "wrong option: attention_window = 16: .*set stride=0"),
        ("--sequence-length 64 --stride 1000", "wrong option: stride = 1000: must be at most"),
        ("--sequence-length 0", "wrong option: sequence_length = 0: must be at least 2"),
        ("--threads 0", "wrong option: threads_per_process = 0: must be at least 1"),
        ("--device cuda", "--device cuda: PyTorch sees no GPU; give --device cpu"),
    ],
)
def test_the_program_refuses_wrong_options_in_one_line_before_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = submission_parser(None).parse_args(["--device", "cpu", *wrong.split()])
    with pytest.raises(SystemExit, match=message):
        evaluate_blob(options, tmp_path / "no such blob", print)
    with pytest.raises(SystemExit, match=message):
        train_blob(Recipe.__new__(Recipe), options, tmp_path / "blob", print)


@pytest.mark.parametrize(
    ("content", "why"), [(None, "No such file"), (b"no blob", "not a blob of this version")]
)
def test_the_program_ends_in_one_line_without_a_sound_blob(
    tmp_path: Path,
    with_other_bos: list[str],
    monkeypatch: pytest.MonkeyPatch,
    content: bytes | None,
    why: str,
) -> None:
    monkeypatch.setattr("stages.core.program._token_bytes", lambda path: None)
    path = tmp_path / "model.fwz"
    if content:
        path.write_bytes(content)
    with pytest.raises(SystemExit, match=f"^model.fwz beside the script: .*{why}"):
        evaluate_blob(submission_parser(None).parse_args(with_other_bos), path, print)


def test_rescoring_refuses_a_tokenizer_with_another_bos(
    tmp_path: Path, model: GPT, with_other_bos: list[str]
) -> None:
    blob(tmp_path, model, {"model": asdict(model.settings)})
    shards = sorted(tmp_path.glob("*.bin"))
    with pytest.raises(SpecError, match=r"--tokenizer = .*other\.model: its BOS has the id 2.*need id 1"):
        rescore(tmp_path, shards, tmp_path / "other.model", ScoringSettings(), ComputeSettings(device="cpu"))
