"""The table of words against a dict, whatever the words' lengths, their number and their collisions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.tokenization import word_table
from stages.tokenization.word_table import PADDING, WordTable

WORDS = st.lists(
    st.binary(min_size=1, max_size=20)
    | st.sampled_from([b"a", b"a\0", b"a\0\0", b"\0", b"\0" * 15, b"\0" * 16]),
    max_size=30,
)


def ids_of(word: bytes) -> list[int]:
    """Some ids that tell words apart; none for words of eight letters."""
    return [] if len(word) == 8 else [len(word), *word]


def encode(words: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    ids = [ids_of(word) for word in words]
    return np.array([token for item in ids for token in item], np.uint16), np.array(
        [len(item) for item in ids], np.int64
    )


def look_up(table: WordTable, words: list[bytes]) -> list[list[int]]:
    data = np.frombuffer(b"".join(words) + b" " * PADDING, np.uint8)
    lengths = np.array([len(word) for word in words], np.int64)
    ends = np.cumsum(lengths)
    rows = table.find(data, ends - lengths, ends)
    ids, bounds = table.ids(rows)
    return [ids[first:end].tolist() for first, end in zip(bounds[:-1], bounds[1:], strict=True)]


@given(calls=st.lists(WORDS, max_size=5))
def test_every_word_gets_its_own_ids_in_every_call(calls):
    table = WordTable(encode)
    for words in calls:
        assert look_up(table, words) == [ids_of(word) for word in words]


def test_a_word_is_encoded_once():
    asked: list[bytes] = []

    def encode_and_note(words: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        asked.extend(words)
        return encode(words)

    table = WordTable(encode_and_note)
    for _ in range(2):
        look_up(
            table,
            [
                b"one",
                b"two",
                b"one",
                b"a word of more than sixteen bytes",
                b"a word of more than sixteen bytes",
            ],
        )
    assert sorted(asked) == [b"a word of more than sixteen bytes", b"one", b"two"]


def test_the_table_grows_with_its_words_and_says_when_it_is_full(monkeypatch):
    monkeypatch.setattr(word_table, "_MAX_ROWS", 30_000)
    table = WordTable(encode)
    words = [f"{number}".encode() * (1 + number % 4) for number in range(40_000)]
    assert look_up(table, words[:20_000]) == [ids_of(word) for word in words[:20_000]]
    assert not table.is_full()
    assert look_up(table, words) == [ids_of(word) for word in words]
    assert look_up(table, words[::-7]) == [ids_of(word) for word in words[::-7]]
    assert table.is_full()


@pytest.mark.parametrize("bits", [1, 3])
def test_words_that_all_want_one_slot_are_still_told_apart(monkeypatch, bits):
    monkeypatch.setattr(word_table, "_LOW_FACTOR", np.uint64(0))
    monkeypatch.setattr(word_table, "_HIGH_FACTOR", np.uint64(0))
    monkeypatch.setattr(word_table, "_START_BITS", bits)
    table = WordTable(encode)
    words = [f"{number}".encode() for number in range(300)]
    for part in (words[:100], words[50:], words):
        assert look_up(table, part) == [ids_of(word) for word in part]
