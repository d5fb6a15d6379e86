"""Transformers itself loads the folder: logits, ids, generated tokens, and a copy that it saves.

    FAIRWAY_TRANSFORMERS_PYTHON=/path/to/python pytest -m slow tests/stages/huggingface

names an interpreter that has torch, transformers and sentencepiece.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sentencepiece import SentencePieceProcessor

from schemas.errors import SpecError, StageError
from schemas.tokenize_corpus import SotuCorpus, TokenizerSpec
from stages.core.model import GPT
from stages.corpora.sotu import locate
from stages.huggingface import check
from stages.huggingface.check import check_folder, transformers_python
from stages.huggingface.export import write_model
from stages.store.hashing import FileHashes
from stages.tokenization.tokenizer import train_tokenizer
from tests.stages.core.test_model_forms import make
from tests.stages.huggingface.conftest import CONTEXT, MODELS, NUM_PIECES

Write = Callable[[str], tuple[Path, GPT]]
IDS = torch.randint(4, NUM_PIECES, (2, CONTEXT), generator=torch.Generator().manual_seed(5))
TEXTS = ("We the people", "", " two  spaces ", "<s> is a word, </s> too", "naïve – 模型\n\ttab", "▁")


def test_without_transformers_the_install_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAIRWAY_TRANSFORMERS_PYTHON", raising=False)
    monkeypatch.setattr(check, "find_spec", lambda name: None if name == "transformers" else object())
    with pytest.raises(SpecError, match=r"transformers is not installed.*pip install torch transformers"):
        transformers_python()
    monkeypatch.setattr(check, "find_spec", lambda name: object())
    assert transformers_python() == sys.executable


def test_another_interpreter_may_have_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRWAY_TRANSFORMERS_PYTHON", sys.executable)
    assert transformers_python() == sys.executable
    monkeypatch.setenv("FAIRWAY_TRANSFORMERS_PYTHON", "/nowhere/python")
    with pytest.raises(SpecError, match="FAIRWAY_TRANSFORMERS_PYTHON = /nowhere/python: is no program"):
        transformers_python()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["smoke", "record", "reference", "winner", "all, one lane", "all, two lanes"]
)
def test_logits_ids_and_generated_tokens_are_those_of_the_run(
    name: str, write: Write, tokenizer_file: Path, python_with_it: str
) -> None:
    folder, model = write(name)
    pieces = SentencePieceProcessor(model_file=str(tokenizer_file))
    found = check_folder(folder, model, pieces, IDS, TEXTS, python_with_it)
    assert found.largest_difference <= 1e-5
    assert found.num_tokens == IDS.numel()


@pytest.mark.slow
def test_other_weights_are_found(write: Write, tokenizer_file: Path, python_with_it: str) -> None:
    folder, model = write("smoke")
    pieces = SentencePieceProcessor(model_file=str(tokenizer_file))
    with torch.no_grad():
        model.blocks[0].mlp.up.weight[0] += 0.1
    with pytest.raises(StageError, match="a logit differs by"):
        check_folder(folder, model, pieces, IDS, (), python_with_it)
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(StageError, match="Transformers cannot read it"):
        check_folder(folder, model, pieces, IDS, (), python_with_it)


@pytest.mark.slow
def test_the_ids_of_all_237_addresses_are_sentencepieces(tmp_path: Path, python_with_it: str) -> None:
    files = locate(SotuCorpus(), FileHashes(None)).files
    texts = [Path(file.path).read_text(encoding="utf-8") for file in files]
    assert len(texts) == 237
    path = tmp_path / "some.model"
    path.write_bytes(train_tokenizer(TokenizerSpec(vocab_size=320), texts[:20]))
    pieces, folder = SentencePieceProcessor(model_file=str(path)), tmp_path / "written"
    folder.mkdir()
    model = make(MODELS["smoke"])
    write_model(folder, model, pieces, path, CONTEXT)
    check_folder(folder, model, pieces, IDS, texts, python_with_it)


SAVE_AND_READ = """
import pickle, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, ids = sys.argv[1], torch.arange(4, 24)[None]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model.save_pretrained(folder + "/copy"), tokenizer.save_pretrained(folder + "/copy")
copy = AutoModelForCausalLM.from_pretrained(folder + "/copy", trust_remote_code=True)
assert copy(ids).logits.equal(model(ids).logits)
text = "We the people are free"
for other in (AutoTokenizer.from_pretrained(folder + "/copy", trust_remote_code=True),
              pickle.loads(pickle.dumps(tokenizer))):
    assert other(text)["input_ids"] == tokenizer(text)["input_ids"]
assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
several = tokenizer([text, "We"], return_tensors="pt", padding=True)
together = model.generate(**several, max_new_tokens=4, do_sample=False)
alone = model.generate(**tokenizer("We", return_tensors="pt"), max_new_tokens=4, do_sample=False)
written = together[1, several["input_ids"].size(1):][: alone.size(1) - 2]
assert written.tolist() == alone[0, 2:].tolist()
assert model(ids.expand(2, -1), labels=ids.expand(2, -1)).loss.isfinite()
half = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16)
assert (half(ids).logits - model(ids).logits).abs().max() < 0.5
assert half(ids).logits.dtype == torch.float32
assert (model.config.hidden_size, model.config.num_hidden_layers) == (32, 11)
fresh = AutoModelForCausalLM.from_config(model.config, trust_remote_code=True)
assert fresh(ids).logits.isfinite().all()
"""


@pytest.mark.slow
def test_a_saved_copy_a_batch_bfloat16_and_a_fresh_model_work(
    write: Write, tmp_path: Path, python_with_it: str
) -> None:
    folder, _ = write("winner")
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    done = subprocess.run(
        [python_with_it, "-P", "-c", SAVE_AND_READ, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
