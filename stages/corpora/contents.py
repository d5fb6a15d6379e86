"""File type detection by content: text, compressed text, Parquet, or unreadable; the name does not count.

gzip, zstd, bzip2 and xz are decompressed while they are read; a truncated or damaged stream is refused.
"""

import bz2
import io
import lzma
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from schemas.errors import SpecError

# By ending of the name.
COMPRESSED_ENDINGS = (".gz", ".zst", ".zstd", ".bz2", ".xz")
# A document is held in memory whole.
MAX_DOCUMENT_BYTES = 2**30

_HEAD_BYTES = 4096
_BUFFER_BYTES = 2**18
# A little compressed input can become much text: of bzip2, 512 bytes become 10 MB at most.
_FEED_BYTES = 512
_PARQUET = b"PAR1"
# zstd --long=31 needs so much, and its files are about.
_MAX_WINDOW_BYTES = 2**31

_COMPRESSIONS = {
    "gzip": re.compile(rb"\x1f\x8b\x08"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
    "bzip2": re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"),
    "xz": re.compile(rb"\xfd7zXZ\x00"),
}
_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(wbits=31),
    "zstd": lambda: zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).decompressobj(),
    "bzip2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ),
}

_UNPACK = "Unpack it and give the files in it"
_DECOMPRESS = "Decompress it, or compress with gzip or zstd instead"
_SAVE_TEXT = "Save it as plain text in UTF-8"
_WRITE_TABLE = "Write it as Parquet or JSON lines"
_GIVE_TEXT = "Give files with text"
_REFUSED: tuple[tuple[re.Pattern[bytes], str, str], ...] = tuple(
    (re.compile(pattern, re.DOTALL), what, remedy)
    for pattern, what, remedy in (
        (
            rb"PK\x03\x04.*?(?:\[Content_Types\]\.xml|word/|xl/|ppt/|_rels/)",
            "an office document (docx, xlsx, pptx)",
            _SAVE_TEXT,
        ),
        (rb"PK\x03\x04.{26}mimetypeapplication/epub", "an EPUB book", _SAVE_TEXT),
        (rb"PK\x03\x04.{26}mimetype", "an office document (OpenDocument)", _SAVE_TEXT),
        (rb"PK(?:\x03\x04|\x05\x06|\x07\x08)", "a ZIP archive", _UNPACK),
        (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
        (rb"Rar!\x1a\x07", "a RAR archive", _UNPACK),
        (rb".{257}ustar", "a tar archive", _UNPACK),
        (rb"%PDF-", "a PDF document", _SAVE_TEXT),
        (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an office document (doc, xls)", _SAVE_TEXT),
        (rb"\{\\rtf", "an RTF document", _SAVE_TEXT),
        (rb"\x04\x22\x4d\x18", "compressed with lz4", _DECOMPRESS),
        (rb"\x1f\x9d", "compressed with compress (.Z)", _DECOMPRESS),
        (rb"\x5d\x00\x00.{2}\xff{8}|LZIP\x01", "compressed with lzma or lzip", _DECOMPRESS),
        (rb"\xff\x06\x00\x00sNaPpY", "compressed with snappy", _DECOMPRESS),
        (rb"PARE", "an encrypted Parquet file", "Write it without encryption"),
        (rb"ARROW1\x00\x00|FEA1.*\x00", "an Arrow (Feather) file", _WRITE_TABLE),
        (rb"ORC.*\x00", "an ORC file", _WRITE_TABLE),
        (rb"Obj\x01", "an Avro file", _WRITE_TABLE),
        (rb"\x89HDF\r\n\x1a\n", "an HDF5 file", _WRITE_TABLE),
        (rb"SQLite format 3\x00", "a SQLite database", _WRITE_TABLE),
        (rb"\x93NUMPY", "a NumPy array", _WRITE_TABLE),
        (
            rb"\x88\xd8\x34\x01\x01\x00\x00\x00",
            "a token shard, not text",
            "Set tokenize.corpus.kind=shards to use ready-made shards",
        ),
        (
            rb"\x00\x05\x16[\x00\x07]",
            "macOS's own notes about a file (AppleDouble), not text",
            "Remove it, or give a pattern without it",
        ),
        (
            rb"version https://git-lfs\.github\.com/spec/",
            "a Git LFS pointer, not the file itself",
            "Fetch the file: git lfs pull",
        ),
        (rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|RIFF.{4}WEBP", "an image", _GIVE_TEXT),
        (
            rb"\x7fELF|MZ.{64,}PE\x00\x00|GGUF.\x00\x00\x00|\xcf\xfa\xed\xfe",
            "a program or a model",
            _GIVE_TEXT,
        ),
    )
)


_SPECIAL = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True)
class Content:
    """An open file: its type, its first bytes and its bytes as a stream, both decompressed.

    `position` counts the bytes of the file itself that were read.
    """

    path: Path
    compression: str | None
    is_parquet: bool
    head: bytes
    stream: "io.BufferedReader[Any]"
    position: Callable[[], int]


@contextmanager
def opened(path: Path) -> Iterator[Content]:
    """The file's content.

    Raises SpecError, naming the file, if it is neither text nor Parquet or if its first bytes are not UTF-8.
    Reading raises SpecError for a damaged compressed stream. Raises OSError if the file cannot be read.
    """
    refuse_special(path, str(path))
    with io.BufferedReader(io.FileIO(path), _BUFFER_BYTES) as file:
        head = file.peek(_HEAD_BYTES)[:_HEAD_BYTES]
        compression = next((name for name, magic in _COMPRESSIONS.items() if magic.match(head)), None)
        if compression is None:
            is_parquet = head.startswith(_PARQUET) and _ends_as_parquet(path)
            if not is_parquet:
                _refuse_by_head(path, head)
                _refuse_false_ending(path)
            yield Content(path, None, is_parquet, head, file, file.tell)
            return
        raw = _Decompressed(file, compression, path)
        with io.BufferedReader(raw, _BUFFER_BYTES) as stream:
            head = stream.peek(_HEAD_BYTES)[:_HEAD_BYTES]
            inner = next((name for name, magic in _COMPRESSIONS.items() if magic.match(head)), None)
            if inner is not None:
                raise SpecError(f"{path}: holds {inner} inside {compression}. Decompress it once")
            if head.startswith(_PARQUET):
                raise SpecError(
                    f"{path}: is a Parquet file compressed with {compression} as a whole. Decompress it"
                )
            _refuse_by_head(path, head)
            yield Content(path, compression, False, head, stream, lambda: raw.num_read)


def refuse_special(path: Path, label: str) -> None:
    """Raise SpecError for all but regular files before they are opened: a pipe would wait for its writer."""
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        return
    what = _SPECIAL.get(stat.S_IFMT(mode), "something else")
    raise SpecError(
        f"{label}: is not a file but {what}. Give the path of a file; what a pipe gives must be "
        "written to one first"
    )


def read_whole(content: Content) -> bytes:
    """All bytes of the content. Raises SpecError for more than the largest size of a document."""
    data = content.stream.read(MAX_DOCUMENT_BYTES + 1)
    if len(data) > MAX_DOCUMENT_BYTES:
        raise SpecError(
            f"{content.path}: has more than {MAX_DOCUMENT_BYTES:,} bytes of text, and a text file is one "
            "document. Split it into files, or write its documents as JSON lines"
        )
    return data


def decode(data: bytes, path: Path, offset: int = 0) -> str:
    """Decode UTF-8. Raises SpecError with the position, counted from `offset`, and the command to convert."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        around = data[max(error.start - 1000, 0) : error.start + 1000]
        raise SpecError(
            f"{path}: byte {offset + error.start:,} is not valid UTF-8 ({error.reason}). "
            f"{_how_to_convert(around)}"
        ) from error


def other_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32, recognised by a byte order mark or by the positions of NUL bytes."""
    marks = {
        b"\xff\xfe\0\0": "UTF-32",
        b"\0\0\xfe\xff": "UTF-32",
        b"\xff\xfe": "UTF-16",
        b"\xfe\xff": "UTF-16",
    }
    for mark, name in marks.items():
        if head.startswith(mark):
            return name
    if b"\0" not in head or len(head) < 4:
        return None
    share = [head[place::4].count(0) / len(head[place::4]) for place in range(4)]
    if min(share[2], share[3]) > 0.9 and share[0] < 0.1:
        return "UTF-32LE"
    if min(share[0], share[1]) > 0.9 and share[3] < 0.1:
        return "UTF-32BE"
    even, odd = (share[0] + share[2]) / 2, (share[1] + share[3]) / 2
    # One NUL inside UTF-8 says nothing unless, among ASCII alone, it makes a space or a line end of two
    # bytes; in bytes that are no UTF-8, a few at every other place are enough.
    if (is_utf8 := _is_utf8(head)) and head.count(0) == 1:
        first = head.find(0) // 2 * 2 if head.isascii() else len(head)
        return {b"\n\0": "UTF-16LE", b" \0": "UTF-16LE", b"\0\n": "UTF-16BE", b"\0 ": "UTF-16BE"}.get(
            head[first : first + 2]
        )
    least = 0.05 if is_utf8 else 0.001
    if odd > least and even < odd / 10:
        return "UTF-16LE"
    return "UTF-16BE" if even > least and odd < even / 10 else None


def _refuse_by_head(path: Path, head: bytes) -> None:
    for magic, what, remedy in _REFUSED:
        if magic.match(head):
            raise SpecError(f"{path}: byte 0: is {what}. {remedy}")
    if (encoding := other_encoding(head)) is not None:
        place = 0 if head[:2] in (b"\xff\xfe", b"\xfe\xff") or head[:1] == b"\0" else head.find(b"\0")
        raise SpecError(
            f"{path}: byte {place}: the text is {encoding}, not UTF-8. {_how_to_convert(head, encoding)}"
        )


def _how_to_convert(data: bytes, encoding: str | None = None) -> str:
    # Western text of one byte a character is mostly ASCII, without control characters.
    num_ascii = sum(0x20 <= byte < 0x7F or byte in b"\t\n\r" for byte in data)
    num_control = sum(byte < 0x20 and byte not in b"\t\n\r\f\x1a" for byte in data)
    if encoding is None and num_control == 0 and num_ascii > 0.6 * len(data):
        encoding = "WINDOWS-1252"
    if encoding is not None:
        return f"Convert to UTF-8, for example with: iconv -f {encoding} -t UTF-8"
    return (
        "Convert to UTF-8: iconv -f ENCODING -t UTF-8, from the encoding it was written in (file "
        "--mime-encoding may tell it)"
    )


def _is_utf8(head: bytes) -> bool:
    try:
        head[:-4].decode("utf-8")
    except UnicodeDecodeError as error:
        return error.end >= len(head) - 4  # a character cut by the end of the head
    return True


def _refuse_false_ending(path: Path) -> None:
    if path.suffix.lower() in COMPRESSED_ENDINGS:
        raise SpecError(
            f"{path}: byte 0: its name says that it is compressed, its content is not; or it was "
            "cut off. Rename it, or fetch it again"
        )


def _ends_as_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - len(_PARQUET), 0))
        return size >= 3 * len(_PARQUET) and file.read() in (_PARQUET, b"PARE")


class _Decompressed(io.RawIOBase):
    """The content of a compressed file: all its members and frames in order. Memory is bounded.

    Every stream must be complete, and only NUL bytes may follow; Python's own readers ignore some of these
    errors.
    """

    def __init__(self, file: "io.BufferedReader[Any]", compression: str, path: Path) -> None:
        self.num_read = 0
        self._file, self._compression, self._path = file, compression, path
        self._decompressor: Any = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            if not self._more():
                return 0
        size = min(len(buffer), len(self._output))
        buffer[:size] = self._output[:size]
        self._output = self._output[size:]
        return size

    def _more(self) -> bool:
        """Decompress the next piece, which may give nothing; False at the end of the file."""
        self._input = self._input or self._file.read(_FEED_BYTES)
        at_end = not self._input
        if self._decompressor is None:
            begins = self._input.lstrip(b"\0")
            self.num_read += len(self._input) - len(begins)
            self._input = begins
            if not begins:
                return not at_end
            self._decompressor = _DECOMPRESSORS[self._compression]()
        elif at_end:
            raise SpecError(
                f"{self._path}: byte {self.num_read:,}: the file ends in the middle of its "
                f"{self._compression} stream: it was cut off. Fetch or write it again"
            )
        piece, self._input = self._input, b""
        try:
            self._output = memoryview(self._decompressor.decompress(piece))
        except (zlib.error, zstandard.ZstdError, OSError, lzma.LZMAError) as error:
            raise SpecError(
                f"{self._path}: byte {self.num_read:,}: its {self._compression} stream is damaged near there "
                f"({error}). Fetch or write it again"
            ) from error
        if self._decompressor.eof:
            self._input = self._decompressor.unused_data
            self._decompressor = None
        self.num_read += len(piece) - len(self._input)
        return True
