"""Shards, read back by an independent reader: `struct` and the words of the format."""

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.shards import ShardError, ShardWriter, open_shard, shard_name


def read_by_hand(path: Path) -> list[int]:
    data = path.read_bytes()
    magic, version, count = struct.unpack_from("<iii", data)
    assert (magic, version) == (20240520, 1)
    assert data[12:1024] == bytes(1012)
    assert len(data) == 1024 + 2 * count
    return list(struct.unpack_from(f"<{count}H", data, 1024))


def write_by_hand(
    path: Path, tokens: list[int], magic: int = 20240520, version: int = 1, count: int | None = None
) -> Path:
    header = struct.pack("<iii", magic, version, len(tokens) if count is None else count)
    path.write_bytes(header.ljust(1024, b"\0") + struct.pack(f"<{len(tokens)}H", *tokens))
    return path


@given(
    chunks=st.lists(st.lists(st.integers(0, 65_535), max_size=20), max_size=12),
    shard_tokens=st.integers(1, 30),
)
def test_any_stream_comes_back_in_full_shards_and_one_rest(tmp_path_factory, chunks, shard_tokens):
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder, "train", shard_tokens) as writer:
        for chunk in chunks:
            writer.write(np.array(chunk, np.uint16))
    tokens = [token for chunk in chunks for token in chunk]
    shards = [read_by_hand(path) for path in writer.paths]
    assert [token for shard in shards for token in shard] == tokens
    assert all(len(shard) == shard_tokens for shard in shards[:-1])
    assert writer.num_tokens == len(tokens)
    assert [path.name for path in writer.paths] == [f"fineweb_train_{i:06d}.bin" for i in range(len(shards))]
    assert sorted(folder.iterdir()) == writer.paths
    for path, shard in zip(writer.paths, shards, strict=True):
        assert open_shard(path).tolist() == shard


def test_a_shard_is_mapped_read_only_as_uint16(tmp_path):
    tokens = open_shard(write_by_hand(tmp_path / "a.bin", [1, 65_535, 7]))
    assert isinstance(tokens, np.memmap)
    assert tokens.dtype == np.uint16
    assert tokens.shape == (3,)
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"magic": 20240521}, "begins with 20240521"),
        ({"version": 2}, "version 2"),
        ({"count": 4}, "1,032 bytes; the file has 1,030"),
        ({"count": 2}, "1,028 bytes; the file has 1,030"),
        ({"count": -3}, "-3 tokens"),
        ({"count": 0}, "0 tokens"),
        ({"count": 2**31 - 1}, "2,147,483,647 tokens"),
    ],
)
def test_a_wrong_header_is_refused_and_named(tmp_path, change, said):
    with pytest.raises(ShardError, match=said) as caught:
        open_shard(write_by_hand(tmp_path / "a.bin", [1, 2, 3], **change))
    assert "a.bin" in str(caught.value)


@pytest.mark.parametrize("size", [0, 1, 1023])
def test_a_file_without_a_whole_header_is_refused(tmp_path, size):
    (tmp_path / "a.bin").write_bytes(bytes(size))
    with pytest.raises(ShardError, match=f"{size:,} bytes, fewer"):
        open_shard(tmp_path / "a.bin")


@given(data=st.binary(max_size=64), at=st.integers(0, 1100))
def test_a_mutated_shard_is_refused_or_holds_as_many_tokens_as_bytes(tmp_path_factory, data, at):
    path = write_by_hand(tmp_path_factory.mktemp("mutated") / "a.bin", [1, 2, 3, 4])
    whole = bytearray(path.read_bytes())
    whole[at : at + len(data)] = data
    path.write_bytes(whole)
    try:
        tokens = open_shard(path)
    except ShardError:
        return
    assert len(tokens) == (len(whole) - 1024) // 2


def test_a_huge_count_allocates_nothing(tmp_path):
    path = write_by_hand(tmp_path / "a.bin", [1], count=2**31 - 1)
    tracemalloc.start()
    with pytest.raises(ShardError):
        open_shard(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_shard_that_was_never_closed_is_refused(tmp_path):
    def interrupted() -> None:
        with ShardWriter(tmp_path, "val", 100) as writer:
            writer.write(np.arange(10, dtype=np.uint16))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(ShardError):
        open_shard(tmp_path / shard_name("val", 0))


@pytest.mark.parametrize("tokens", [[-1, 5], [65_536]])
def test_ids_that_uint16_cannot_hold_are_refused(tmp_path, tokens):
    with ShardWriter(tmp_path, "val", 100) as writer, pytest.raises(ValueError, match="0 to 65,535"):
        writer.write(np.array(tokens))


@pytest.mark.parametrize("shard_tokens", [0, 100_000_001])
def test_shards_hold_between_one_and_a_hundred_million_tokens(tmp_path, shard_tokens):
    with pytest.raises(ValueError, match="shard_tokens"):
        ShardWriter(tmp_path, "val", shard_tokens)
