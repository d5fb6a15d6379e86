"""Writer of one split: shards, counts, and the validation text for the general compressors."""

import lzma
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import zstandard

from schemas.tokenize_corpus import SplitCounts
from stages.core.bits_per_byte import TokenBytes, count_bytes
from stages.core.shards import BOS_ID, ShardWriter
from stages.tokenization.splits import SplitName

_BOS = np.array([BOS_ID], np.uint16).tobytes()
_BUFFER_BYTES = 2_000_000
_COUNTED_TOKENS = 1_000_000
_READ_BYTES = 1_000_000


class SplitWriter:
    """Writes documents as BOS + ids; `counts()` is available once it is closed.

    Memory is that of a buffer and one document.
    """

    def __init__(
        self,
        folder: Path,
        split: SplitName,
        shard_tokens: int,
        table: TokenBytes,
        text_file: BinaryIO | None = None,
    ) -> None:
        self.num_documents = self.num_empty = 0
        self._shards = ShardWriter(folder, split, shard_tokens)
        self._table, self._text_file = table, text_file
        self._buffer = bytearray()
        self._num_bos = self._utf8_bytes = self._token_bytes = 0

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._shards.__exit__(kind, error, trace)

    @property
    def paths(self) -> list[Path]:
        return self._shards.paths

    def add(self, text: str, ids: np.ndarray) -> bool:
        """Append a document with its ids (n,) uint16. A document without ids has no text and is not written.

        Returns whether it was written.
        """
        if not ids.size:
            self.num_empty += 1
            return False
        self.num_documents += 1
        if self._text_file is not None:
            self._utf8_bytes += self._text_file.write(text.encode())
        else:
            self._utf8_bytes += len(text) if text.isascii() else len(text.encode())
        self._buffer += _BOS
        self._buffer += ids.tobytes()
        if len(self._buffer) > _BUFFER_BYTES:
            self._flush()
        return True

    def counts(
        self,
        normalized_utf8_bytes: int | None = None,
        zstd_bytes: int | None = None,
        xz_bytes: int | None = None,
    ) -> SplitCounts:
        """The counts of the written split. Normalised bytes are those of the tokens, unless they were counted
        in the text.
        """
        return SplitCounts(
            num_documents=self.num_documents,
            num_empty_documents_skipped=self.num_empty,
            num_tokens=self._shards.num_tokens,
            num_bos=self._num_bos,
            utf8_bytes=self._utf8_bytes,
            normalized_utf8_bytes=self._token_bytes
            if normalized_utf8_bytes is None
            else normalized_utf8_bytes,
            zstd_bytes=zstd_bytes,
            xz_bytes=xz_bytes,
        )

    def _flush(self) -> None:
        tokens = np.frombuffer(self._buffer, np.uint16)
        self._buffer = bytearray()
        self._shards.write(tokens)
        self._num_bos += int(np.count_nonzero(tokens == BOS_ID))
        # The first token is a BOS: whatever stands before it, it counts nothing.
        for start in range(0, tokens.size - 1, _COUNTED_TOKENS):
            counted = tokens[start : start + _COUNTED_TOKENS + 1]
            self._token_bytes += int(count_bytes(self._table, counted[:-1], counted[1:]).sum())


def zstd_size(text: BinaryIO, num_bytes: int) -> int:
    """Bytes of the file's text, `num_bytes` long, under zstd -22 (`--ultra`)."""
    return _compressed_size(text, zstandard.ZstdCompressor(level=22).compressobj(size=num_bytes))


def xz_size(text: BinaryIO) -> int:
    """Bytes of the file's text under xz -9."""
    return _compressed_size(text, lzma.LZMACompressor(preset=9))


def _compressed_size(text: BinaryIO, compressor: Any) -> int:
    text.seek(0)
    size = 0
    while data := text.read(_READ_BYTES):
        size += len(compressor.compress(data))
    return size + len(compressor.flush())
