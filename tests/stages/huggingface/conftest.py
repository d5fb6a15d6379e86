"""Models of every form in an exported folder, and the interpreter that has Transformers."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from sentencepiece import SentencePieceProcessor
from torch import nn

from presets import load_preset
from schemas.errors import SpecError
from schemas.model_settings import ModelSettings
from schemas.tokenize_corpus import TokenizerSpec
from stages.core.model import GPT
from stages.huggingface import check, export
from stages.huggingface.export import remote_code, write_model
from stages.tokenization.tokenizer import train_tokenizer
from tests.stages.core.test_model_forms import FORMS, PLAIN, make

NUM_PIECES, CONTEXT = 280, 24
_TINY: dict[str, Any] = {
    "vocab_size": NUM_PIECES,
    "model_dim": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "mlp_hidden": 48,
    "rope_dims": 4,
}


def _of_preset(name: str, **changes: Any) -> ModelSettings:
    return load_preset(name).train.model.derive(**_TINY, **changes)


MODELS = {
    **{name: PLAIN.derive(vocab_size=NUM_PIECES, **change) for name, change in FORMS.items()},
    "smoke": load_preset("smoke").train.model,  # 320 rows, more than the tokenizer's pieces
    "record": _of_preset("record", value_embedding_dim=8),
    "reference": _of_preset("reference", value_embedding_dim=8),
    "winner": _of_preset("winner"),
}


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pieces") / "some.model"
    path.write_bytes(train_tokenizer(TokenizerSpec(vocab_size=NUM_PIECES), ["We the people are free. " * 20]))
    return path


@pytest.fixture(scope="session")
def code() -> dict[str, str]:
    """The sources in a folder, bundled once for all tests."""
    return remote_code()


@pytest.fixture
def write(
    tmp_path: Path, tokenizer_file: Path, code: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], tuple[Path, GPT]]:
    """Writes the folder of the model of that name; returns it with the model."""

    monkeypatch.setattr(export, "remote_code", lambda: code)

    def of(name: str) -> tuple[Path, GPT]:
        model, folder = make(MODELS[name]), tmp_path / "written"
        folder.mkdir()
        write_model(
            folder, model, SentencePieceProcessor(model_file=str(tokenizer_file)), tokenizer_file, CONTEXT
        )
        return folder, model

    return of


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model's module uses of Transformers, so that its code runs where that is not installed."""

    class PretrainedConfig:
        attribute_map: dict[str, str] = {}  # noqa: RUF012

        def __init__(self, **values: Any) -> None:
            self.__dict__.update(values)

    class PreTrainedModel(nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.config = config

        def post_init(self) -> None: ...

        def loss_function(
            self, logits: torch.Tensor, labels: torch.Tensor, vocab_size: int, num_items_in_batch: Any
        ) -> torch.Tensor:
            return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    class CausalLMOutput:
        def __init__(self, loss: Any, logits: Any) -> None:
            self.loss, self.logits = loss, logits

    transformers, outputs = ModuleType("transformers"), ModuleType("transformers.modeling_outputs")
    for value in (PretrainedConfig, PreTrainedModel):
        setattr(transformers, value.__name__, value)
    transformers.GenerationMixin = type("GenerationMixin", (), {})  # type: ignore[attr-defined]
    outputs.CausalLMOutput = CausalLMOutput  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    monkeypatch.setitem(sys.modules, "transformers.modeling_outputs", outputs)


@pytest.fixture(scope="session")
def python_with_it() -> str:
    """An interpreter that has Transformers."""
    try:
        return check.transformers_python()
    except SpecError as error:
        pytest.skip(str(error))
