"""The code in the folder computes what the run's model computes, without a module of ours."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from schemas.errors import SpecError, StageError
from stages.core.model import GPT
from stages.core.shards import BOS_ID
from stages.huggingface import export
from stages.huggingface.export import remote_code, write_model
from stages.packaging.bundle import imported_packages
from tests.stages.core.test_model_forms import make
from tests.stages.huggingface.conftest import CONTEXT, MODELS, NUM_PIECES

Write = Callable[[str], tuple[Path, GPT]]
SOME_IDS = torch.randint(4, NUM_PIECES, (2, 12), generator=torch.Generator().manual_seed(5))
SOME_IDS[0, 4] = SOME_IDS[1, 0] = BOS_ID


@pytest.fixture
def loaded(write: Write, stand_in: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Writes a model and makes it from the folder, as Transformers does; returns both."""

    def load(name: str) -> tuple[Any, GPT]:
        folder, model = write(name)
        monkeypatch.syspath_prepend(folder.parent)
        module = importlib.import_module(f"{folder.name}.modeling_fairway")
        config = module.FairwayConfig(**json.loads((folder / "config.json").read_text()))
        read = module.FairwayForCausalLM(config)
        read.load_state_dict(load_file(folder / "model.safetensors"))
        return read, model

    yield load
    for name in [name for name in sys.modules if name.split(".")[0] == "written"]:
        del sys.modules[name]


def logits_of(model: GPT, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model.logits(model.hidden(ids))


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_every_form_of_the_model_has_the_same_logits(name: str, loaded: Callable[[str], Any]) -> None:
    read, model = loaded(name)
    assert type(read.model) is not GPT
    assert read(SOME_IDS).logits.equal(logits_of(model, SOME_IDS))


def test_padding_at_either_end_changes_no_logit(loaded: Callable[[str], Any]) -> None:
    read, model = loaded("all, two lanes")
    ids, mask = torch.zeros(3, 12, dtype=torch.int64), torch.zeros(3, 12, dtype=torch.int64)
    rows = [SOME_IDS[0], SOME_IDS[1, :7], SOME_IDS[1, :5]]
    places = [slice(0, 12), slice(5, 12), slice(3, 8)]
    for index, (row, place) in enumerate(zip(rows, places, strict=True)):
        ids[index, place], mask[index, place] = row, 1
    with torch.no_grad():
        logits = read(ids, attention_mask=mask).logits
        last = read(ids, attention_mask=mask, logits_to_keep=2).logits
    for index, (row, place) in enumerate(zip(rows, places, strict=True)):
        torch.testing.assert_close(logits[index, place], logits_of(model, row[None])[0], atol=1e-5, rtol=0)
    # A product of fewer rows may round otherwise.
    torch.testing.assert_close(last, logits[:, -2:], atol=1e-6, rtol=0)


def test_a_mask_with_holes_and_embeddings_are_refused(loaded: Callable[[str], Any]) -> None:
    read, _ = loaded("smoke")
    mask = torch.ones_like(SOME_IDS)
    mask[1, 3] = 0
    with pytest.raises(ValueError, match="leaves out tokens inside a row"):
        read(SOME_IDS, attention_mask=mask)
    with pytest.raises(ValueError, match="one number for each token"):
        read(SOME_IDS, attention_mask=mask[:, None, None])
    with pytest.raises(ValueError, match="reads ids only"):
        read(inputs_embeds=torch.zeros(2, 12, 32))


def test_labels_give_the_loss_of_each_next_token_and_gradients(loaded: Callable[[str], Any]) -> None:
    read, model = loaded("winner")
    answer = read(SOME_IDS, labels=SOME_IDS, logits_to_keep=3)
    expected = model(SOME_IDS[:, :-1], SOME_IDS[:, 1:])
    torch.testing.assert_close(answer.loss, expected)
    assert answer.logits.shape == (2, 3, NUM_PIECES)
    answer.loss.backward()
    assert read.model.blocks[0].mlp.up.weight.grad.abs().sum() > 0


def test_generation_sees_as_many_tokens_as_a_training_row_has(loaded: Callable[[str], Any]) -> None:
    read, _ = loaded("smoke")
    long = torch.arange(2 * CONTEXT)[None]
    given = read.prepare_inputs_for_generation(long, torch.ones_like(long), logits_to_keep=1)
    assert given["input_ids"].equal(long[:, -CONTEXT:])
    assert given["attention_mask"].shape == (1, CONTEXT)
    assert given["logits_to_keep"] == 1


def test_a_model_without_weights_to_load_begins_as_ours_does(loaded: Callable[[str], Any]) -> None:
    read, model = loaded("record")
    torch.manual_seed(3)
    fresh = type(read)(read.config)
    torch.manual_seed(3)
    model.init_weights(int(torch.randint(2**31, ())))
    assert all(
        parameter.equal(dict(model.named_parameters())[name])
        for name, parameter in fresh.model.named_parameters()
        if name.endswith(".weight")
    )


def test_the_code_imports_nothing_of_ours(code: dict[str, str]) -> None:
    assert sorted(code) == [
        "configuration_fairway.py",
        "modeling_fairway.py",
        "tokenization_fairway.py",
    ]
    imported = set().union(*map(imported_packages, code.values())) - set(sys.stdlib_module_names)
    assert imported == {"torch", "numpy", "transformers", "sentencepiece", "."}
    assert "\nfrom .configuration_fairway import FairwayConfig\n" in code["modeling_fairway.py"]


def test_code_that_a_reader_cannot_run_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "bundle", lambda entry, keep_comments: ("import pandas\n", ()))
    with pytest.raises(StageError, match="would import pandas"):
        remote_code()


def test_ids_without_a_text_are_never_generated(write: Write, tokenizer_file: Path) -> None:
    folder, _ = write("smoke")
    assert json.loads((folder / "generation_config.json").read_text()) == {
        "use_cache": False,
        "suppress_tokens": list(range(NUM_PIECES, 320)),
        "bos_token_id": BOS_ID,
        "eos_token_id": BOS_ID,
        "pad_token_id": 0,
    }
    assert (folder / "tokenizer.model").read_bytes() == tokenizer_file.read_bytes()


def test_a_tokenizer_with_more_pieces_than_the_model_is_refused(tmp_path: Path, tokenizer_file: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    small = make(MODELS["smoke"].derive(vocab_size=NUM_PIECES - 1))
    with pytest.raises(SpecError, match="has 280 pieces, the model knows 279"):
        write_model(
            tmp_path, small, SentencePieceProcessor(model_file=str(tokenizer_file)), tokenizer_file, CONTEXT
        )
