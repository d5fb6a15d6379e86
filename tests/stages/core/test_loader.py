from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from schemas.train_settings import DataSettings
from stages.core.loader import BatchLoader, DocumentRows, SequenceOrder, TokenStream, in_pieces
from stages.core.shards import BOS_ID, ShardWriter

SETTINGS = DataSettings(batch_tokens=32, sequence_length=8, micro_batch_sequences=2)


@pytest.fixture
def stream(tmp_path: Path) -> TokenStream:
    with ShardWriter(tmp_path, "train", shard_tokens=37) as writer:
        writer.write(np.arange(200, dtype=np.uint16))
    return TokenStream(writer.paths)


def global_batch(
    stream: TokenStream, step: int, num_processes: int, settings: DataSettings = SETTINGS, seed: int = 0
) -> torch.Tensor:
    rows = []
    for rank in range(num_processes):
        loader = BatchLoader(stream, settings, seed, rank, num_processes)
        rows += loader.batch(step)
        loader.close()
    return torch.cat(rows)


def test_a_stream_reads_across_shard_borders(stream: TokenStream) -> None:
    assert len(stream) == 200
    np.testing.assert_array_equal(stream.read(30, 90), np.arange(30, 120))


def test_the_global_batch_is_the_same_for_any_number_of_processes(stream: TokenStream) -> None:
    for step in (0, 5, 11):
        one = global_batch(stream, step, 1)
        assert one.shape == (4, 9)
        assert torch.equal(one, global_batch(stream, step, 2))
        assert torch.equal(one, global_batch(stream, step, 4))


def test_micro_batches_have_their_size_and_one_token_more_than_a_sequence(stream: TokenStream) -> None:
    loader = BatchLoader(stream, SETTINGS, 0)
    for rows in loader.batch(0):
        assert rows.shape == (2, 9)
        assert torch.equal(rows[:, 1:], rows[:, :-1] + 1)
    loader.close()


@given(batch=st.integers(1, 4), pieces=st.integers(1, 5), length=st.integers(1, 6))
def test_pieces_of_a_row_predict_its_targets_from_their_own_inputs(
    batch: int, pieces: int, length: int
) -> None:
    rows = torch.arange(batch * (pieces * length + 1)).reshape(batch, -1) * 7
    cut = in_pieces(rows, length)
    expected = [
        row[start : start + length + 1].tolist()
        for row in rows
        for start in range(0, pieces * length, length)
    ]
    assert cut.tolist() == expected


def test_an_epoch_sees_every_sequence_once_and_the_next_in_another_order() -> None:
    order = SequenceOrder(11, seed=4, shuffled=True)
    first, second = order.at(np.arange(11)), order.at(np.arange(11, 22))
    assert sorted(first) == sorted(second) == list(range(11))
    assert list(first) != list(second)
    np.testing.assert_array_equal(order.at(np.arange(8, 14)), np.concatenate((first[8:], second[:3])))


def test_seeds_change_the_order_and_sequential_is_the_order_of_the_shards(stream: TokenStream) -> None:
    assert not torch.equal(global_batch(stream, 0, 1, seed=0), global_batch(stream, 0, 1, seed=1))
    sequential = DataSettings(batch_tokens=32, sequence_length=8, micro_batch_sequences=2, order="sequential")
    assert global_batch(stream, 0, 1, sequential, seed=9)[:, 0].tolist() == [0, 8, 16, 24]


def test_a_split_shorter_than_a_sequence_is_refused(stream: TokenStream) -> None:
    with pytest.raises(ValueError, match="200 tokens, fewer than one sequence of 400"):
        BatchLoader(stream, DataSettings(batch_tokens=400, sequence_length=400), 0)


def documents(tmp_path: Path, counts: list[int], inside: bool = False) -> tuple[TokenStream, np.ndarray]:
    ids = np.random.default_rng(2).integers(2, 60_000, sum(counts)).astype(np.uint16)
    ids[(np.cumsum(counts) - counts)[1 if inside else 0 :]] = BOS_ID
    with ShardWriter(tmp_path, "train", shard_tokens=101) as writer:
        writer.write(ids)
    return TokenStream(writer.paths), ids


@pytest.mark.parametrize("inside", [False, True])
def test_rows_of_documents_are_text_that_follows_itself_and_begins_with_a_document(
    tmp_path: Path, inside: bool
) -> None:
    stream, ids = documents(tmp_path, [30, 3, 5, 1, 8, 9, 70, 2, 4, 6, 7, 11], inside)
    rows = DocumentRows(stream, 8)
    follows = set(zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True))
    inputs: set[int] = set()
    for index in range(len(rows)):
        row = rows.read(index)
        assert row.shape == (9,)
        inputs |= set(row[:-1].tolist())
        # A BOS comes after the end of some document, anything else after what it follows in the text.
        assert all(b == BOS_ID or (a, b) in follows for a, b in zip(row[:-1], row[1:], strict=True))
    assert inputs == set(ids[:-1].tolist())
    begin = [rows.read(index)[0] == BOS_ID for index in range(len(rows))]
    assert rows.at_start == pytest.approx(np.mean(begin))
    assert 0 < rows.at_start < 1


def test_batches_of_documents_come_from_those_rows_for_any_number_of_processes(tmp_path: Path) -> None:
    stream, _ = documents(tmp_path, [20, 7, 9, 30, 12, 5, 5, 40])
    settings = DataSettings(batch_tokens=32, sequence_length=8, micro_batch_sequences=2, windows="documents")
    rows = DocumentRows(stream, 8)
    known = {tuple(rows.read(index).tolist()) for index in range(len(rows))}
    for step in (0, 4):
        batch = global_batch(stream, step, 1, settings)
        assert torch.equal(batch, global_batch(stream, step, 2, settings))
        assert {tuple(row) for row in batch.tolist()} <= known
