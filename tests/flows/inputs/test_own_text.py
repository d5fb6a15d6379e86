"""The user's own text: what `--text` and the form's field set, and what is too small."""

import logging
import struct
from pathlib import Path

import pytest

from flows.inputs.own_text import refuse_small_text, text_settings
from flows.inputs.specs import plan_run, resolve
from presets import load_preset
from schemas.errors import SpecError
from schemas.overrides import apply_overrides
from schemas.pipeline import PipelineSpec
from schemas.tokenize_corpus import TokenizerSpec
from stages.corpora import documents, locate
from stages.tokenization.survey import READ_BYTES
from stages.tokenization.tokenizer import train_tokenizer

SMOKE = load_preset("smoke")
FIRST = ["tokenize.split.kind=first_documents", "tokenize.split.num_val_documents=1"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def addresses() -> list[str]:
    """Six real documents."""
    return list(documents(SMOKE.tokenize.corpus, locate(SMOKE.tokenize)))


def books(folder: Path, texts: list[str], ending: str = ".txt") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(texts):
        (folder / f"{number}{ending}").write_text(text, encoding="utf-8")


def with_text(text: str, *overrides: str) -> PipelineSpec:
    return apply_overrides(SMOKE, [*text_settings([text], SMOKE, overrides), *overrides])


def files_of(spec: PipelineSpec) -> list[str]:
    return [Path(file.path).name for file in locate(spec.tokenize).files]


@pytest.mark.parametrize("text", ["books/*.txt", "books", "books/", "./books"])
def test_a_pattern_and_a_folder_name_the_same_files(text: str, here: Path, addresses: list[str]) -> None:
    books(here / "books", addresses[:3])
    (here / "books" / "picture.png").write_bytes(b"no text")
    spec = with_text(text)
    assert files_of(spec) == ["0.txt", "1.txt", "2.txt"]
    refuse_small_text(spec)


def test_several_texts_are_one_corpus(here: Path) -> None:
    books(here, ["a", "b"])
    books(here / "more", ['{"text": "c"}'], ".jsonl")
    settings = text_settings(["0.txt", "more"], SMOKE, FIRST)
    assert settings[1] == 'tokenize.corpus.paths=["0.txt", "more/**/*.jsonl"]'


@pytest.mark.parametrize("name", ["HuggingFaceFW/fineweb", "owner/data.set-2"])
def test_a_dataset_of_the_hub(name: str) -> None:
    assert text_settings([name], SMOKE) == [
        "tokenize.corpus.kind=huggingface",
        f"tokenize.corpus.dataset={name}",
    ]


def test_what_is_on_this_machine_is_no_dataset(here: Path) -> None:
    """Also a name in a folder that exists: there is a typing error in it."""
    books(here / "owner", ["a"])
    assert text_settings(["owner/0.txt"], SMOKE, FIRST)[0] == "tokenize.corpus.kind=files"
    with pytest.raises(SpecError, match=r"corpus\.paths = owner/book: matches no file"):
        text_settings(["owner/book"], SMOKE)
    with pytest.raises(SpecError, match=r"corpus\.paths = nowhere/book\.txt"):
        text_settings(["nowhere/book.txt"], SMOKE)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "text = '': give a file"),
        (" ", "text = '': give"),
        ("empty", "text = empty: the folder has no file"),
    ],
)
def test_a_text_that_is_nowhere_is_refused(text: str, named: str, here: Path) -> None:
    (here / "empty").mkdir()
    with pytest.raises(SpecError, match=named):
        text_settings([text], SMOKE)


def shards(folder: Path) -> None:
    folder.mkdir(parents=True)
    for split in ("train", "val"):
        header = struct.pack("<iii", 20240520, 1, 3).ljust(1024, b"\0")
        (folder / f"fineweb_{split}_000000.bin").write_bytes(header + struct.pack("<3H", 1, 40, 41))


def test_a_folder_of_shards_brings_its_tokenizer_and_its_vocabulary(here: Path) -> None:
    """In the official layout: data/datasets/…, and data/tokenizers with several models."""
    shards(here / "data" / "datasets" / "fineweb10B_sp280")
    (here / "data" / "tokenizers").mkdir()
    with pytest.raises(SpecError, match=r"no SentencePiece \.model lies in it or beside it"):
        text_settings(["data/datasets/fineweb10B_sp280"], SMOKE)
    model = train_tokenizer(
        TokenizerSpec(vocab_size=280), ["a few words to learn from, and a few more words"]
    )
    for size in (280, 1024):
        (here / "data" / "tokenizers" / f"fineweb_{size}_bpe.model").write_bytes(model)
    spec = with_text("data/datasets/fineweb10B_sp280")
    assert spec.tokenize.corpus.tokenizer_model == str(here / "data" / "tokenizers" / "fineweb_280_bpe.model")
    assert spec.train.model.vocab_size == 280
    assert len(locate(spec.tokenize).files) == 2
    shards(here / "data" / "datasets" / "other")
    with pytest.raises(SpecError, match="several models may be the tokenizer"):
        text_settings(["data/datasets/other"], SMOKE)


def test_a_split_that_leaves_no_text_on_a_side_gives_way(
    here: Path, addresses: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flows")
    books(here, addresses[:2])
    never = "tokenize.split.val_fraction=0.000001"
    spec = apply_overrides(SMOKE, text_settings(["*.txt"], apply_overrides(SMOKE, [never])))
    assert spec.tokenize.split.num_val_documents == 1
    assert "the first 1 of 2 documents are for validation" in caplog.text
    kept = with_text("*.txt", never)  # chosen by the user
    assert kept.tokenize.split.kind == "hash_fraction"
    with pytest.raises(SpecError, match=r"split\.val_fraction = 1e-06: .* none of the 2 documents"):
        refuse_small_text(kept)


def test_short_documents_are_held_out_until_they_fill_a_sequence(here: Path, addresses: list[str]) -> None:
    books(here, ["short", "too", *addresses[:2]])
    spec = with_text("*.txt")
    assert spec.tokenize.split.num_val_documents == 3
    refuse_small_text(spec)


def test_one_document_is_refused_with_the_command_that_cuts_it(here: Path, addresses: list[str]) -> None:
    books(here, addresses[:1])
    with pytest.raises(SpecError, match=r"one document, .* split -n l/20 --additional-suffix=\.txt"):
        refuse_small_text(with_text("0.txt"))


@pytest.mark.parametrize("empty", ["", " \n"])
def test_empty_files_do_not_count(
    empty: str, here: Path, addresses: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flows")
    books(here, [addresses[0], empty])
    with pytest.raises(SpecError, match=r"the text is one document \(1 more without text\), and"):
        refuse_small_text(with_text("*.txt"))
    assert caplog.text == ""
    books(here, [empty, *addresses[:2], empty])
    spec = with_text("*.txt")
    assert spec.tokenize.split.num_val_documents == 2  # in the order of the files, empty ones included
    assert "the first 1 of 2 documents are for validation" in caplog.text
    refuse_small_text(spec)
    never = "tokenize.split.val_fraction=0.000001"
    with pytest.raises(SpecError, match="none of the 2 documents with text"):
        refuse_small_text(with_text("*.txt", never))


def test_text_too_small_for_validation_is_refused_with_the_smallest_size_that_works(
    here: Path, addresses: list[str]
) -> None:
    """That size, rounded up a little, does work."""
    books(here, [addresses[1][:50], addresses[0]])
    with pytest.raises(SpecError) as caught:
        refuse_small_text(with_text("*.txt", *FIRST))
    message = str(caught.value)
    assert "its validation split has 50 bytes, " in message
    assert "a sequence needs 65" in message
    smallest = int(message.split("About ")[1].split(" bytes")[0].replace(",", ""))
    assert 50 < smallest < 300
    books(here, [addresses[1][: smallest + 20], addresses[0]])
    refuse_small_text(with_text("*.txt", *FIRST))


def test_a_vocabulary_that_the_text_cannot_carry_is_lowered_with_a_notice(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    books(here, ["one two three " * 200, "four five six " * 200])
    spec = with_text("*.txt", *FIRST)
    size = spec.tokenize.tokenizer.vocab_size
    assert 260 <= size < 320
    assert spec.train.model.vocab_size == size
    assert f"a vocabulary of at most {size} pieces" in caplog.text
    refuse_small_text(spec)  # it is one that can be trained
    chosen = ["tokenize.tokenizer.vocab_size=320", "train.model.vocab_size=320"]
    with pytest.raises(SpecError, match=rf"tokenizer\.vocab_size = 320: .* Set it to at most {size}"):
        refuse_small_text(with_text("*.txt", *FIRST, *chosen))


def test_large_text_is_not_read_before_it_is_tokenized(here: Path) -> None:
    for name in ("a.txt", "b.txt"):
        with (here / name).open("wb") as file:  # NUL bytes, which reading would refuse
            file.truncate(READ_BYTES // 2 + 1)
    spec = with_text("*.txt")
    assert spec.tokenize.split.num_val_documents == 1
    refuse_small_text(spec)


def test_the_forms_field_is_the_same_as_the_option(here: Path, addresses: list[str]) -> None:
    books(here, addresses[:3])
    assert resolve("smoke", [], {"text": "*.txt"}) == plan_run("smoke", text_settings(["*.txt"], SMOKE)).spec
