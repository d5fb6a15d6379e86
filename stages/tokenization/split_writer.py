"""Writer of one split: shards, counts, and the validation text for the general compressors."""

import lzma
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, BinaryIO, Protocol

import numpy as np
import zstandard

from schemas.tokenize_corpus import Split
from schemas.tokenize_parts import SplitSums
from stages.core.bits_per_byte import TokenBytes, count_bytes
from stages.core.shards import BOS_ID
from stages.tokenization.fast_encode import TextEncoder
from stages.tokenization.splits import split_of

_BOS = np.array([BOS_ID], np.uint16).tobytes()
_BUFFER_BYTES = 2_000_000
_COUNTED_TOKENS = 1_000_000
_READ_BYTES = 1_000_000


class TokenSink(Protocol):
    """Where a stream of tokens goes: shards, or one file."""

    num_tokens: int

    def write(self, tokens: np.ndarray) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class SplitWriter:
    """Writes documents as BOS + ids into `tokens`; `sums()` is available once it is closed.

    Memory is that of a buffer and one document.
    """

    def __init__(self, tokens: TokenSink, table: TokenBytes, text_file: BinaryIO | None = None) -> None:
        self.num_documents = self.num_empty = 0
        self._tokens = tokens
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
        self._tokens.__exit__(kind, error, trace)

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

    def sums(self, normalized_utf8_bytes: int | None = None) -> SplitSums:
        """The sums of the written split. Normalised bytes are those of the tokens, unless they were counted
        in the text.
        """
        return SplitSums(
            num_documents=self.num_documents,
            num_empty_documents_skipped=self.num_empty,
            num_tokens=self._tokens.num_tokens,
            num_bos=self._num_bos,
            utf8_bytes=self._utf8_bytes,
            normalized_utf8_bytes=self._token_bytes
            if normalized_utf8_bytes is None
            else normalized_utf8_bytes,
        )

    def _flush(self) -> None:
        tokens = np.frombuffer(self._buffer, np.uint16)
        self._buffer = bytearray()
        self._tokens.write(tokens)
        self._num_bos += int(np.count_nonzero(tokens == BOS_ID))
        # The first token is a BOS: whatever stands before it, it counts nothing.
        for start in range(0, tokens.size - 1, _COUNTED_TOKENS):
            counted = tokens[start : start + _COUNTED_TOKENS + 1]
            self._token_bytes += int(count_bytes(self._table, counted[:-1], counted[1:]).sum())


def write_splits(
    encoded: Iterable[tuple[str, np.ndarray]],
    split: Split,
    encoder: TextEncoder,
    train: SplitWriter,
    val: SplitWriter,
    on_written: Callable[[str, int, np.ndarray], None] = lambda name, index, ids: None,
) -> tuple[SplitSums, SplitSums]:
    """Write each text with its ids (n,) into its split, close both, and give the sums of train and val.

    `on_written` gets the split, number (from 0) and ids of each document that has some.
    """
    normalized_bytes = 0
    with train, val:
        for index, (text, ids) in enumerate(encoded):
            name = split_of(split, index, text)
            written = (val if name == "val" else train).add(text, ids)
            if written and name == "val":
                normalized_bytes += encoder.normalized_size(text)
            if written:
                on_written(name, index, ids)
    return train.sums(), val.sums(normalized_bytes)


def zstd_size(text: Iterable[bytes], num_bytes: int) -> int:
    """Bytes of the text in pieces, `num_bytes` long in all, under zstd -22 (`--ultra`)."""
    return _compressed_size(text, zstandard.ZstdCompressor(level=22).compressobj(size=num_bytes))


def xz_size(text: Iterable[bytes]) -> int:
    """Bytes of the text in pieces under xz -9."""
    return _compressed_size(text, lzma.LZMACompressor(preset=9))


def pieces(files: Iterable[BinaryIO]) -> Iterator[bytes]:
    """The bytes of the files, one behind the other, in pieces of a million, however long each file is."""
    piece = b""
    for file in files:
        while data := file.read(_READ_BYTES - len(piece)):
            piece += data
            if len(piece) == _READ_BYTES:
                yield piece
                piece = b""
    if piece:
        yield piece


def _compressed_size(text: Iterable[bytes], compressor: Any) -> int:
    return sum(len(compressor.compress(piece)) for piece in text) + len(compressor.flush())
