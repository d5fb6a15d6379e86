"""A model continues a text: the same text for the same seed, by the probabilities of the model itself."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from pydantic import ValidationError
from scipy import stats
from torch import Tensor

from schemas.errors import SpecError
from schemas.model_settings import ModelSettings
from schemas.sample import SamplingSettings
from schemas.tokenize_corpus import TokenizerSpec
from stages.core.model import GPT
from stages.core.shards import BOS_ID
from stages.sampling.generator import Generator
from stages.tokenization.tokenizer import train_tokenizer

TEXTS = ["The Union is strong, and the people of these States are free. " * 8, "Peace be with you — always."]
VOCABULARY = 290


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path: Path = tmp_path_factory.mktemp("pieces") / "tokenizer.model"
    path.write_bytes(train_tokenizer(TokenizerSpec(vocab_size=VOCABULARY), TEXTS))
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


@pytest.fixture
def generator(tiny_model: ModelSettings, tiny_state: dict[str, Tensor], pieces: Any) -> Generator:
    model = GPT(tiny_model)
    model.load_state_dict(tiny_state)
    return Generator(model, pieces, context_tokens=32)


def _ids(generator: Generator, prompt: str) -> list[int]:
    return [BOS_ID, *generator.tokenizer.encode(prompt)]


def test_temperature_0_takes_the_likeliest_token_step_by_step(generator: Generator) -> None:
    ids, model = _ids(generator, "The Union"), generator.model
    [written] = generator.continue_tokens([ids], SamplingSettings(tokens=64, temperature=0))
    expected = list(ids)
    with torch.inference_mode():
        while len(expected) < len(ids) + 64:
            seen = torch.tensor([expected[-generator.context_tokens :]])
            likeliest = int(model.logits(model.hidden(seen))[0, -1, :VOCABULARY].argmax())
            if likeliest == BOS_ID:
                break
            expected.append(likeliest)
    assert written == expected[len(ids) :]
    assert len(written) > 8


def test_the_same_seed_gives_the_same_text_and_another_seed_another(generator: Generator) -> None:
    first, again = (generator.generate("Peace", tokens=40, seed=3) for _ in range(2))
    assert first == again
    assert generator.generate("Peace", tokens=40, seed=4)[0].text != first[0].text


def test_a_text_does_not_depend_on_how_many_others_are_written(generator: Generator) -> None:
    several = generator.generate("Peace", tokens=30, seed=5, count=3)
    alone = [generator.generate("Peace", tokens=30, seed=5 + index)[0] for index in range(3)]
    assert several == alone


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.7, 5)])
def test_tokens_come_as_often_as_the_model_says(generator: Generator, temperature: float, top_k: int) -> None:
    count, ids = 4_000, _ids(generator, "free")
    settings = SamplingSettings(tokens=1, temperature=temperature, top_k=top_k)
    with torch.inference_mode():
        logits = generator.model.logits(generator.model.hidden(torch.tensor([ids])))[0, -1, :VOCABULARY]
    if top_k:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)
    expected = (logits / temperature).double().softmax(-1).numpy() * count
    drawn = [row[0] if row else BOS_ID for row in generator.continue_tokens([ids] * count, settings)]
    seen = torch.bincount(torch.tensor(drawn), minlength=VOCABULARY).double().numpy()
    assert not seen[expected == 0].any()
    rare = expected < 5  # too few for the test one by one
    observed, wanted = [*seen[~rare]], [*expected[~rare]]
    if rare.any() and expected[rare].sum() > 0:
        observed, wanted = [*observed, seen[rare].sum()], [*wanted, expected[rare].sum()]
    assert stats.chisquare(observed, wanted).pvalue > 1e-4


def _recorded(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    seen: list[Tensor] = []
    hidden: Callable[..., Tensor] = generator.model.hidden

    def record(ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(ids)
        return hidden(ids, *args, **kwargs)

    monkeypatch.setattr(generator.model, "hidden", record)
    return seen


def test_an_empty_prompt_begins_a_document(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _recorded(generator, monkeypatch)
    [written] = generator.generate("", tokens=3)
    assert seen[0].tolist() == [[BOS_ID]]
    assert written.text


def test_the_model_never_sees_more_than_it_was_trained_on(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _recorded(generator, monkeypatch)
    generator.generate("The people are free. " * 10, tokens=5)
    assert {ids.size(1) for ids in seen} == {generator.context_tokens}


def test_a_document_that_the_model_ends_is_at_its_end(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first text ends after two tokens, the second goes on."""
    script = [[40, 41], [42, 43], [BOS_ID, 44], [45, 46]]
    monkeypatch.setattr(generator, "_choose", lambda *_: torch.tensor(script.pop(0)))
    ids = _ids(generator, "free")
    assert generator.continue_tokens([ids, ids], SamplingSettings(tokens=4)) == [[40, 42], [41, 43, 44, 46]]
    script = [[47], [BOS_ID]]
    [written] = generator.generate("free", tokens=9)
    assert (written.num_tokens, written.ended) == (1, True)


@pytest.mark.parametrize("start", ["", "The Union", "Peace be with you —", " and", "é"])
def test_start_and_continuation_make_the_whole_text(generator: Generator, start: str) -> None:
    more = " are free — always"
    whole = generator.tokenizer.encode(start + more)
    for cut in range(len(whole) + 1):
        before = generator.tokenizer.decode(whole[:cut])
        if "\ufffd" not in before:  # cut within a character
            text = before + generator.text_after(whole[:cut], whole[cut:])
            assert text == generator.tokenizer.decode(whole)


def test_a_tokenizer_of_another_model_is_refused(
    tiny_model: ModelSettings, pieces: Any, generator: Generator
) -> None:
    smaller = GPT(replace(tiny_model, vocab_size=VOCABULARY - 1))
    with pytest.raises(SpecError, match=f"has {VOCABULARY} pieces, last knows {VOCABULARY - 1}"):
        Generator(smaller, pieces, 32, "last")


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"seed": -1},
        {"count": 0},
    ],
)
def test_settings_out_of_bounds_are_refused(generator: Generator, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        generator.generate("x", **wrong)
