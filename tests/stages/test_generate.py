"""A folder with a package is loaded and continues a text; nothing of it is believed or run."""

import dataclasses
import os
import random
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from presets import load_preset
from schemas.errors import SpecError
from schemas.model_settings import ModelSettings
from schemas.tokenize_corpus import TokenizerSpec
from stages.core.blob.packing import pack
from stages.core.calibrated.whole_model import quantize_state
from stages.generate import DEFAULT_CONTEXT_TOKENS, is_folder, load
from stages.store.store import Store
from stages.tokenization.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("pieces") / "tokenizer.model"
    path.write_bytes(train_tokenizer(TokenizerSpec(vocab_size=280), ["We the people are free. " * 20]))
    return path


@pytest.fixture
def folder(tmp_path: Path, tiny_model: ModelSettings, tiny_state: dict[str, Tensor]) -> Path:
    quantized = quantize_state(tiny_state, load_preset("smoke").quantize)
    package = tmp_path / "package"
    package.mkdir()
    metadata: dict[str, Any] = {"model": dataclasses.asdict(tiny_model)}
    (package / "model.fwz").write_bytes(pack(quantized, metadata, 1))
    (package / "train_gpt.py").write_text("raise SystemExit('a script of a stranger was run')")
    return package


def test_a_folder_continues_a_text(folder: Path, tokenizer: Path) -> None:
    model = load(folder, tokenizer=tokenizer)
    [written] = model.generate("We the people", tokens=20)
    assert written.num_tokens == 20
    assert model.generate("We the people", tokens=20) == load(str(folder), tokenizer=tokenizer).generate(
        "We the people", tokens=20
    )


@pytest.mark.parametrize(
    ("told", "context"),
    [
        ("{}", DEFAULT_CONTEXT_TOKENS),
        ('{"eval_sequence_length": 64}', 64),
        ('{"eval_sequence_length": 64, "eval_attention_window": 0}', 64),
        ('{"eval_sequence_length": 64, "eval_attention_window": 32}', 32),
        ('{"eval_sequence_length": 1000000000}', DEFAULT_CONTEXT_TOKENS),
        ('{"eval_sequence_length": "64"}', DEFAULT_CONTEXT_TOKENS),
        ("no JSON", DEFAULT_CONTEXT_TOKENS),
    ],
)
def test_the_context_is_the_length_that_the_folder_was_scored_with(
    folder: Path, tokenizer: Path, told: str, context: int
) -> None:
    assert load(folder, tokenizer=tokenizer).context_tokens == DEFAULT_CONTEXT_TOKENS
    (folder / "submission.json").write_text(told)
    assert load(folder, tokenizer=tokenizer).context_tokens == context


def test_what_cannot_be_used_is_refused(folder: Path, tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such folder"):
        load(tmp_path / "nowhere", tokenizer=tokenizer)
    with pytest.raises(SpecError, match=r"--tokenizer: the folder .* has none of its own"):
        load(folder)
    with pytest.raises(SpecError, match="is not a SentencePiece model"):
        load(folder, tokenizer=folder / "train_gpt.py")
    with pytest.raises(SpecError, match="--weights = merged: the folder"):
        load(folder, tokenizer=tokenizer, weights="merged")
    with pytest.raises(SpecError, match=r"--tokenizer = .*: a run has its own"):
        load("last", tokenizer=tokenizer, store=tmp_path)
    with pytest.raises(SpecError, match="there is no store in this folder"):
        load("last", store=tmp_path)
    Store(tmp_path / "store")
    with pytest.raises(SpecError, match="holds no finished run"):
        load("last", store=tmp_path / "store")


def test_a_link_or_a_pipe_in_place_of_the_model_is_refused(folder: Path, tokenizer: Path) -> None:
    blob = folder / "model.fwz"
    elsewhere = folder / "elsewhere"
    blob.rename(elsewhere)
    blob.symlink_to(elsewhere)
    with pytest.raises(SpecError, match="it is a link"):
        load(folder, tokenizer=tokenizer)
    blob.unlink()
    os.mkfifo(blob)
    with pytest.raises(SpecError, match="no plain file"):
        load(folder, tokenizer=tokenizer)


def test_a_damaged_model_is_refused_with_one_message(folder: Path, tokenizer: Path) -> None:
    """Any other error than SpecError, which tells of a BlobError, fails here."""
    blob, chance = (folder / "model.fwz").read_bytes(), random.Random(0)
    for _ in range(60):
        damaged = bytearray(blob)
        damaged[chance.randrange(len(blob))] ^= 1 << chance.randrange(8)
        (folder / "model.fwz").write_bytes(damaged[: chance.choice((len(blob), chance.randrange(len(blob))))])
        with pytest.raises(SpecError, match=r"FOLDER = .*model\.fwz"):
            load(folder, tokenizer=tokenizer)


def test_a_path_is_told_from_a_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert is_folder(folder.name)  # it holds a model
    assert is_folder("./nowhere")
    assert is_folder(Path("last"))
    assert not is_folder("last")
