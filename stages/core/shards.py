"""Token shards in the official format: 256 little-endian int32 (20240520, 1, token count, zeros), then
that many uint16 tokens.

The file is exactly 1024 + 2·count bytes long. A document may be cut by the end of a shard and go on in the
next one.
"""

import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final

import numpy as np

SHARD_MAGIC = 20_240_520
SHARD_VERSION = 1
SHARD_HEADER_INTS = 256
SHARD_HEADER_BYTES = 4 * SHARD_HEADER_INTS
MAX_SHARD_TOKENS = 100_000_000
# Each document begins with it; the model and the scorer have no other.
BOS_ID: Final = 1


class ShardError(ValueError):
    """A file that is no sound token shard. The message names the file and what is wrong with it."""


def shard_name(split: str, index: int) -> str:
    """File name of shard `index` (from 0) of `split` ("train" or "val")."""
    return f"fineweb_{split}_{index:06d}.bin"


def open_shard(path: Path) -> np.ndarray:
    """The tokens of a shard, memory-mapped read-only: (n,) uint16 little-endian, n ≥ 1.

    Header and file size are checked before anything is mapped, so a false count allocates nothing. Raises
    ShardError for a wrong magic number, version, count or size, OSError when the file cannot be read.
    """
    with open(path, "rb") as file:
        file_bytes = os.fstat(file.fileno()).st_size
        header_bytes = file.read(SHARD_HEADER_BYTES)
    if len(header_bytes) < SHARD_HEADER_BYTES:
        raise ShardError(
            f"{path}: has {file_bytes:,} bytes, fewer than the {SHARD_HEADER_BYTES:,} of a shard's header"
        )
    magic, version, num_tokens = (int(value) for value in np.frombuffer(header_bytes, "<i4", count=3))
    if magic != SHARD_MAGIC:
        raise ShardError(f"{path}: begins with {magic}, a token shard begins with {SHARD_MAGIC}")
    if version != SHARD_VERSION:
        raise ShardError(f"{path}: has shard version {version}, only version {SHARD_VERSION} is known")
    if num_tokens < 1:
        raise ShardError(f"{path}: its header says {num_tokens:,} tokens, a shard holds at least one")
    expected_bytes = SHARD_HEADER_BYTES + 2 * num_tokens
    if file_bytes != expected_bytes:
        raise ShardError(
            f"{path}: its header says {num_tokens:,} tokens, so {expected_bytes:,} bytes; the file "
            f"has {file_bytes:,}"
        )
    return np.memmap(path, dtype="<u2", mode="r", offset=SHARD_HEADER_BYTES, shape=(num_tokens,))


class ShardWriter:
    """Writes a stream of tokens as shards of exactly `shard_tokens`, the last one shorter; memory stays
    that of one call.

        with ShardWriter(folder, "train", 100_000_000) as writer:
            writer.write(tokens)
        writer.paths, writer.num_tokens

    The header gets its count when the shard is closed: one that was not closed is refused by `open_shard`.
    Raises ValueError for `shard_tokens` outside 1 … 100,000,000.
    """

    def __init__(self, folder: Path, split: str, shard_tokens: int = MAX_SHARD_TOKENS) -> None:
        if not 1 <= shard_tokens <= MAX_SHARD_TOKENS:
            raise ValueError(f"shard_tokens = {shard_tokens:,}: must be between 1 and {MAX_SHARD_TOKENS:,}")
        self.paths: list[Path] = []
        self.num_tokens = 0
        self._folder, self._split, self._shard_tokens = folder, split, shard_tokens
        self._in_shard = 0
        self._file: BinaryIO | None = None

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._file is not None:
            self._file.close()

    def write(self, tokens: np.ndarray) -> None:
        """Append `tokens`, (n,) of any integer type with values 0 … 65,535; else raises ValueError."""
        if tokens.dtype != np.uint16:
            if tokens.size and (tokens.min() < 0 or tokens.max() > np.iinfo(np.uint16).max):
                raise ValueError(
                    f"token ids from {tokens.min()} to {tokens.max()}: a shard holds 0 to 65,535"
                )
            tokens = tokens.astype(np.uint16)
        while tokens.size:
            file = self._file or self._open_next()
            part, tokens = np.split(tokens, [self._shard_tokens - self._in_shard])
            file.write(part.astype("<u2", copy=False).tobytes())
            self._in_shard += part.size
            self.num_tokens += part.size
            if self._in_shard == self._shard_tokens:
                self.close()

    def close(self) -> None:
        """Complete the shard in work; does nothing when there is none."""
        if self._file is None:
            return
        header = np.zeros(SHARD_HEADER_INTS, "<i4")
        header[:3] = SHARD_MAGIC, SHARD_VERSION, self._in_shard
        self._file.seek(0)
        self._file.write(header.tobytes())
        self._file.close()
        self._file, self._in_shard = None, 0

    def _open_next(self) -> BinaryIO:
        path = self._folder / shard_name(self._split, len(self.paths))
        self._file = path.open("xb")
        self._file.write(bytes(SHARD_HEADER_BYTES))
        self.paths.append(path)
        return self._file
