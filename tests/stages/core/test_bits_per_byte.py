"""Bytes of tokens, against hand-computed text and against the normalised text itself."""

import io
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from stages.core.bits_per_byte import TokenBytes, WrongBosError, count_bytes, load_token_bytes

BOS = 1


def train(path: Path, lines: list[str], vocab_size: int, **options) -> Path:
    model = io.BytesIO()
    settings = {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "nmt_nfkc",
        "add_dummy_prefix": False,
    }
    settings |= {"pad_id": 0, "bos_id": BOS, "eos_id": 2, "unk_id": 3, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=vocab_size, **(settings | options)
    )
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory) -> Path:
    lines = ["the cat sat on the mat", "the dog ate the café menu", "10 cats, 20 dogs and naïve élan"] * 20
    return train(tmp_path_factory.mktemp("tokenizer") / "a.model", lines, 330, required_chars="▁")


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_path))


@pytest.fixture(scope="module")
def table(tokenizer_path) -> TokenBytes:
    return load_token_bytes(tokenizer_path)


def bytes_of(table: TokenBytes, ids: list[int]) -> list[int]:
    """Bytes of each token of a document that begins with BOS, BOS left out."""
    return count_bytes(table, np.array([BOS, *ids[:-1]], np.uint16), np.array(ids, np.uint16)).tolist()


def test_pieces_bytes_and_spaces_count_as_in_the_text(tokenizer, table):
    pieces = ["▁the", "▁", "<0xE6>", "<0xBC>", "<0xA2>", "é", "▁cat"]
    ids = [tokenizer.piece_to_id(piece) for piece in pieces]
    assert tokenizer.unk_id() not in ids
    # "the" without its space, as nothing stands before it; one space; 漢 as three bytes; é; " cat"
    assert bytes_of(table, ids) == [3, 1, 1, 1, 1, 2, 4]


def test_a_real_text_counts_its_utf8_bytes(tokenizer, table):
    text = "the café 漢 naïve 10 cats"
    ids = tokenizer.encode(text)
    assert {"▁", "<0xE6>"} <= {tokenizer.id_to_piece(i) for i in ids}
    assert sum(bytes_of(table, ids)) == len(text.encode()) == 28


def test_bos_stands_for_no_byte_and_takes_the_space_after_it(tokenizer, table):
    the = tokenizer.piece_to_id("▁the")
    assert count_bytes(table, np.array([the, BOS, the]), np.array([BOS, the, the])).tolist() == [0, 3, 4]


def test_control_pieces_are_boundaries_and_unknown_counts_nothing(tokenizer, table):
    assert np.flatnonzero(table.boundary).tolist() == [0, 1, 2]
    assert table.base_bytes[[0, 1, 2, tokenizer.unk_id()]].tolist() == [0, 0, 0, 0]


def test_counts_keep_the_shape_of_a_batch(table):
    ids = np.full((2, 3), 50, np.uint16)
    assert count_bytes(table, ids, ids).shape == (2, 3)
    assert count_bytes(table, ids, ids).dtype == np.int64


@given(text=st.text(max_size=60) | st.text(alphabet="the cat▁éñ漢\u0301\u00a0\n\0", max_size=60))
@example("")
@example("▁ ▁a▁")
@example("  the\n\n cat\u3000 ")
@example("ﬁ½①e\u0301\0\u0301")
def test_a_documents_bytes_are_those_of_its_normalised_text(tokenizer, table, text):
    normalized = tokenizer.normalize(text).replace("▁", " ")
    ids = tokenizer.encode(text)
    assert sum(bytes_of(table, ids)) == len(normalized.encode())


@pytest.fixture(scope="module")
def spaced_path(tmp_path_factory) -> Path:
    """A model that keeps runs of spaces and has pieces of several words."""
    options = {
        "remove_extra_whitespaces": False,
        "split_by_whitespace": False,
        "required_chars": "▁",
        "add_dummy_prefix": True,
    }
    return train(
        tmp_path_factory.mktemp("spaced") / "b.model", ["a b  a b   ab", "  b a  a"] * 30, 275, **options
    )


@given(text=st.text(alphabet="ab ▁\n\u00a0漢", max_size=40))
def test_with_other_normalisations_only_a_leading_space_counts_nothing(spaced_path, text):
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(spaced_path))
    assert any("▁" in tokenizer.id_to_piece(piece)[1:] for piece in range(275))
    normalized = tokenizer.normalize(text).removeprefix("▁").replace("▁", " ")
    assert sum(bytes_of(load_token_bytes(spaced_path), tokenizer.encode(text))) == len(normalized.encode())


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ({"bos_id": 2, "eos_id": 1}, "its BOS has the id 2; .*need id 1"),
        ({"bos_id": -1}, "has no BOS piece.*need id 1"),
    ],
)
def test_a_tokenizer_with_another_bos_has_no_byte_counts_to_score_with(tmp_path, ids, said):
    path = train(tmp_path / "a.model", ["the cat sat on the mat"] * 20, 272, required_chars="▁", **ids)
    with pytest.raises(WrongBosError, match=said):
        load_token_bytes(path)
