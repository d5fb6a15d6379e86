"""Input that people have: each kind is read whole and in order, or refused with file, place and remedy;
nothing in between.
"""

import bz2
import gzip
import json
import lzma
import random
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import SpecError, StageError
from schemas.runtime import RunOptions
from schemas.tokenize_corpus import FilesCorpus, FirstDocuments, TokenizedCorpus, TokenizerSpec, TokenizeSpec
from stages.core.shards import ShardWriter
from stages.corpora import documents, locate
from stages.store.hashing import FileHashes
from stages.store.workspace import Workspace
from stages.tokenization.fast_encode import TextEncoder
from stages.tokenization.tokenizer import train_tokenizer
from stages.tokenize_corpus import tokenize_corpus

TEXTS = [f"Some words of document {number}, naïve and 漢字.\nAnd a second line." for number in range(40)]
WORDS = [f"{text} " + "More words about nothing in particular. " * 3 for text in TEXTS]


def lines(texts: list[str] = TEXTS, end: str = "\n", **more: Any) -> bytes:
    return "".join(json.dumps({"text": text} | more, ensure_ascii=False) + end for text in texts).encode()


def table(path: Path, **columns: Any) -> None:
    pq.write_table(pa.table(columns), path)


def zst(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


SKIPPABLE = b"\x50\x2a\x4d\x18\x04\0\0\0meta"
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": zst,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}
HALF = len(lines()) // 2
ODD = [text + "\u2028second\u0085third\x0bfourth\x0c fifth" for text in TEXTS]
SPACED = ["   " + text.replace(" ", "   ") + "\t\t\n\n\n" for text in TEXTS]
MARKED = [
    text + " \u2581 <s> </s> <unk> <0x41> e\u0301 \ufb01 \u2460 \u00a0 \u200b \ufeff x" for text in TEXTS
]
CJK = [
    "".join(chr(0x4E00 + (number * 31 + place * 7) % 8000) for place in range(200)) for number in range(40)
]
LONG = ["x" * 200_000, "é" * 70_000, *TEXTS]

# File, content (bytes, or what writes it), and the texts; a corpus setting may follow.
Content = bytes | Callable[[Path], object]
READ: dict[str, tuple[str, Content, list[str]] | tuple[str, Content, list[str], dict[str, str]]] = {
    "plain": ("a.jsonl", lines(), TEXTS),
    "CRLF": ("a.jsonl", lines(end="\r\n"), TEXTS),
    "no last line end": ("a.jsonl", lines().rstrip(b"\n"), TEXTS),
    "blank lines": ("a.jsonl", lines(end="\n \r\n\n"), TEXTS),
    "separators inside strings": ("a.jsonl", lines(ODD), ODD),
    "runs of spaces": ("a.jsonl", lines(SPACED), SPACED),
    "signs that a tokenizer has": ("a.jsonl", lines(MARKED), MARKED),
    "no spaces at all": ("a.jsonl", lines(CJK), CJK),
    "BOM": ("a.jsonl", b"\xef\xbb\xbf" + lines(), TEXTS),
    "BOM of a file that was joined on": (
        "a.jsonl",
        lines() + b"\xef\xbb\xbf" + lines() + b"\xef\xbb\xbf\n",
        TEXTS * 2,
    ),
    "BOM, text": ("a.txt", b"\xef\xbb\xbfabc", ["abc"]),
    "lines in a .json": ("a.json", lines(), TEXTS),
    "endings in capitals": ("A.JSONL.GZ", gzip.compress(lines()), TEXTS),
    "UPPER.TXT": ("UPPER.TXT", TEXTS[0].encode(), TEXTS[:1]),
    "gzip of several members": (
        "a.jsonl.gz",
        gzip.compress(lines()[:HALF]) + gzip.compress(lines()[HALF:]),
        TEXTS,
    ),
    "gzip with an empty member": ("a.jsonl.gz", gzip.compress(b"") + gzip.compress(lines()), TEXTS),
    "gzip padded with NULs": ("a.jsonl.gz", gzip.compress(lines()) + bytes(5000), TEXTS),
    "zstd of several frames": ("a.jsonl.zst", zst(lines()[:HALF]) + SKIPPABLE + zst(lines()[HALF:]), TEXTS),
    "zstd behind a skippable frame": ("a.jsonl.zstd", SKIPPABLE + zst(lines()), TEXTS),
    "bzip2 of several streams": (
        "a.jsonl.bz2",
        bz2.compress(lines()[:HALF]) + bz2.compress(lines()[HALF:]),
        TEXTS,
    ),
    "xz of several streams": (
        "a.jsonl.xz",
        lzma.compress(lines()[:HALF]) + bytes(4) + lzma.compress(lines()[HALF:]),
        TEXTS,
    ),
    "gzip named .jsonl": ("a.jsonl", gzip.compress(lines()), TEXTS),
    "zstd named .gz": ("a.txt.gz", zst(b"abc"), ["abc"]),
    "BOM in gzip": ("a.txt.gz", gzip.compress(b"\xef\xbb\xbfabc\r\nd"), ["abc\nd"]),
    "an array on one line": ("a.jsonl", json.dumps([{"text": text} for text in TEXTS]).encode(), TEXTS),
    "an array over many lines": (
        "a.json",
        json.dumps([{"text": text} for text in TEXTS], indent=2).encode(),
        TEXTS,
    ),
    "an array behind a BOM and space": (
        "a.json",
        b"\xef\xbb\xbf \r\n" + json.dumps([{"text": text} for text in TEXTS]).encode(),
        TEXTS,
    ),
    "an array with space everywhere": (
        "a.json",
        b' [\n{"text" : "a"}\r\n ,\t{ "text":"b"} ]\n\n',
        ["a", "b"],
    ),
    "an array of long documents": (
        "a.json",
        json.dumps([{"text": text} for text in LONG], ensure_ascii=False).encode(),
        LONG,
    ),
    "an array in gzip": (
        "a.json.gz",
        gzip.compress(json.dumps([{"text": text} for text in TEXTS]).encode()),
        TEXTS,
    ),
    "a key that comes twice": ("a.jsonl", b'{"text": "ignored", "text": "kept"}\n' * 3, ["kept"] * 3),
    "NaN and infinity elsewhere": (
        "a.jsonl",
        b'{"text": "a", "score": NaN, "top": -Infinity, "x": 1e999}\n',
        ["a"],
    ),
    "long numbers elsewhere": (
        "a.jsonl",
        b'{"id": ' + b"9" * 5000 + b', "text": "a", "b": [-' + b"1" * 6000 + b"]}\n",
        ["a"],
    ),
    "a long number in an array": ("a.json", b'[{"id": ' + b"9" * 100_000 + b', "text": "a"}]', ["a"]),
    "a nested key": (
        "a.jsonl",
        b'{"meta": {"text": "a"}}\n{"meta": null}\n',
        ["a", ""],
        {"text_column": "meta.text"},
    ),
    "a key with a dot wins": ("a.jsonl", b'{"m": {"t": "no"}, "m.t": "a"}\n', ["a"], {"text_column": "m.t"}),
    "a nested key with a dot": ("a.jsonl", b'{"m.n": {"t.u": "a"}}\n', ["a"], {"text_column": "m.n.t.u"}),
    "CRLF, text": ("a.txt", b"one\r\ntwo\r\n\r\nthree", ["one\ntwo\n\nthree"]),
    "CR alone, text": ("a.txt", b"one\rtwo\r\rthree", ["one\ntwo\n\nthree"]),
    "line ends of all kinds": ("a.txt", b"one\r\n\rtwo\n\rthree\r", ["one\n\ntwo\n\nthree\n"]),
    "text that begins as Parquet does": (
        "a.txt",
        b"PAR1 is what such files begin with",
        ["PAR1 is what such files begin with"],
    ),
    "text that begins as ORC does": ("a.txt", b"ORC and FEA1, RIFF", ["ORC and FEA1, RIFF"]),
    "a NUL inside a text": ("a.txt", b"one\0two", ["one\0two"]),
    "Parquet without an ending": ("snappy_no_ext", lambda path: table(path, text=TEXTS), TEXTS),
    "Parquet named .jsonl": ("a.jsonl", lambda path: table(path, text=TEXTS), TEXTS),
    "Parquet named as pandas does": ("a.parquet.gzip", lambda path: table(path, text=TEXTS), TEXTS),
    "Parquet named .gz": ("a.parquet.gz", lambda path: table(path, text=TEXTS), TEXTS),
    "null rows": ("a.parquet", lambda path: table(path, text=["a", None, "b"]), ["a", "", "b"]),
    "a column of nulls": ("a.parquet", lambda path: table(path, text=pa.nulls(3)), ["", "", ""]),
    "a struct's field": (
        "a.parquet",
        lambda path: table(path, text=[{"content": "a"}, None]),
        ["a", ""],
        {"text_column": "text.content"},
    ),
    "a field two structs deep": (
        "a.parquet",
        lambda path: table(path, a=[{"b": {"c": "x"}}]),
        ["x"],
        {"text_column": "a.b.c"},
    ),
    "a column with a dot": (
        "a.parquet",
        lambda path: table(path, **{"a.text": ["x"]}),
        ["x"],
        {"text_column": "a.text"},
    ),
    "a column with a dot wins": (
        "a.parquet",
        lambda path: table(path, **{"a": [{"text": "no"}], "a.text": ["x"]}),
        ["x"],
        {"text_column": "a.text"},
    ),
    "a dot in the name of a struct": (
        "a.parquet",
        lambda path: table(path, **{"a.b": [{"c.d": "x"}]}),
        ["x"],
        {"text_column": "a.b.c.d"},
    ),
    "columns that differ in case": (
        "a.parquet",
        lambda path: table(path, Text=["no"], text=["x"], TEXT=["no"]),
        ["x"],
    ),
    "other columns of one name": (
        "a.parquet",
        lambda path: pq.write_table(
            pa.Table.from_arrays([pa.array([1]), pa.array(["x"]), pa.array([2])], names=["id", "text", "id"]),
            path,
        ),
        ["x"],
    ),
}
READ |= {
    f"{name} of {kind}": (
        f"a.{kind}.{name}",
        pack(b"abc" if kind == "txt" else lines()),
        ["abc"] if kind == "txt" else TEXTS,
    )
    for name, pack in PACKERS.items()
    for kind in ("txt", "jsonl", "json", "ndjson")
}
READ |= {
    f"Parquet, {kind}": (
        "a.parquet",
        lambda path, kind=kind: table(path, text=pa.array([*TEXTS, None]).cast(kind)),
        [*TEXTS, ""],
    )
    for kind in (
        pa.binary(),
        pa.large_string(),
        pa.large_binary(),
        pa.string_view(),
        pa.binary_view(),
        pa.dictionary(pa.int32(), pa.string()),
    )
}
READ |= {
    f"Parquet, {codec}": (
        "a.parquet",
        lambda path, codec=codec: pq.write_table(pa.table({"text": TEXTS}), path, compression=codec),
        TEXTS,
    )
    for codec in ("none", "snappy", "gzip", "brotli", "zstd", "lz4")
}


def refused(*said: str) -> str:
    return ".*".join(said)


TAKE_OUT = "tr -d '.000'"
DUPLICATE = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
REFUSED: dict[str, tuple[str, Content, str] | tuple[str, Content, str, dict[str, str]]] = {
    **{
        f"{encoding} in .{kind}": (
            f"a.{kind}",
            (lines(CJK).decode() if kind == "jsonl" else "\n".join(TEXTS)).encode(encoding),
            refused(
                rf"a\.{kind}: byte \d: the text is UTF-{encoding[4:6]}",
                "Convert to UTF-8",
                f"iconv -f UTF-{encoding[4:6]}",
            ),
        )
        for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")
        for kind in ("jsonl", "txt")
    },
    "UTF-16 whose bytes are all ASCII": (
        "a.txt",
        ("漢字" * 50 + "\n").encode("utf-16-be"),
        refused("byte 200: the text is UTF-16BE", "iconv -f UTF-16BE"),
    ),
    "UTF-16 in gzip": ("a.txt.gz", gzip.compress("some text".encode("utf-16")), "byte 0: the text is UTF-16"),
    "Latin-1": (
        "a.txt",
        ("some words and a café. " * 50).encode("latin-1"),
        refused("byte 20 is not valid", "Convert to UTF-8", "WINDOWS-1252"),
    ),
    "Latin-1 in a later line": (
        "a.jsonl",
        lines() + b'{"text": "caf\xe9"}',
        refused(rf"byte {len(lines()) + 13:,} is not", "Convert to UTF-8"),
    ),
    "Latin-1 in gzip": (
        "a.jsonl.gz",
        gzip.compress(lines() + b'{"text": "caf\xe9"}'),
        refused(rf"byte {len(lines()) + 13:,} is not"),
    ),
    "Latin-1 in an array": (
        "a.json",
        b'[{"text": "abc"}, {"text": "caf\xe9s"}]',
        refused(r"a\.json: byte 31 is not valid", "Convert to UTF-8"),
    ),
    "Cyrillic of one byte": (
        "a.txt",
        ("слова " * 50).encode("cp1251"),
        r"Convert to UTF-8: iconv -f ENCODING",
    ),
    "a character cut off at the end of an array": (
        "a.json",
        b'[{"text": "caf\xc3',
        r"a\.json: byte 14 is not valid UTF-8",
    ),
    "NUL bytes at the end": (
        "a.jsonl",
        lines() + bytes(4096),
        refused(r"a\.jsonl:41: .*4,096 NUL bytes", "not written to its end", TAKE_OUT),
    ),
    "NUL bytes at the end, gzip": (
        "a.jsonl.gz",
        gzip.compress(lines() + bytes(4096)),
        r"jsonl\.gz:41: .*4,096 NUL bytes",
    ),
    "NUL bytes at the end, text": (
        "a.txt",
        b"abc" + bytes(99),
        refused(r"a\.txt: byte 3: 99 NUL bytes", TAKE_OUT),
    ),
    "NUL bytes behind an array": (
        "a.json",
        b'[{"text": "a"}]\n' + bytes(99),
        r"a\.json:2: NUL bytes follow the end of the array",
    ),
    "NUL bytes between lines": (
        "a.jsonl",
        lines() + bytes(512) + lines(),
        r"a\.jsonl:41: .*512 NUL bytes from character 1",
    ),
    "nothing but NUL bytes": ("a.txt", bytes(10_000), r"a\.txt: byte 0: 10,000 NUL bytes"),
    "two on a line": (
        "a.jsonl",
        b'{"text": "a"}{"text": "b"}\n',
        refused(r"a\.jsonl:1: .*second value begins at character 14", "jq -c"),
    ),
    "two on a later line": (
        "a.jsonl",
        lines() + b'{"text": "a"} {"text": "b"}\n',
        r"a\.jsonl:41: .*second value",
    ),
    "lines that end in CR": (
        "a.jsonl",
        lines(end="\r"),
        refused(r"a\.jsonl:1: .*lines end in CR alone", "tr "),
    ),
    "one object over lines": (
        "a.json",
        json.dumps({"text": "a"}, indent=1).encode(),
        refused(r"a\.json:1: .*goes over several lines", "jq -c"),
    ),
    "objects over lines": (
        "a.jsonl",
        b'{\n "text": "a"\n}\n{\n "text": "b"\n}\n',
        refused(r"a\.jsonl:1: ", "jq -c"),
    ),
    "a broken line": (
        "a.jsonl",
        lines() + b'{"text": "a" "b"}\n' + lines(),
        r"a\.jsonl:41: is not valid JSON: Expecting ',' delimiter",
    ),
    "a file cut off": ("a.jsonl", lines()[:-20], r"a\.jsonl:40: .*the file was cut off"),
    "an array cut off": (
        "a.json",
        json.dumps([{"text": text} for text in TEXTS], indent=1).encode()[:-30],
        refused(r"a\.json:\d+: .*element 40", "cut off"),
    ),
    "an array cut off between elements": (
        "a.json",
        b'[{"text": "a"},\n{"text": "b"}',
        refused(r"a\.json:2: the end of the file follows element 2"),
    ),
    "an array broken inside": (
        "a.json",
        b'[{"text": "a"},\n{"text": b"}]',
        refused(r"a\.json:2: is not valid JSON: element 2"),
    ),
    "a comma before the end": (
        "a.json",
        b'[{"text": "a"},]',
        refused(r"a\.json:1: is not valid JSON: element 2"),
    ),
    "no comma between elements": (
        "a.json",
        b'[{"text": "a"}\n{"text": "b"}]',
        r"a\.json:2: '\{' follows element 1",
    ),
    "two arrays": (
        "a.json",
        b'[{"text": "a"}]\n[{"text": "b"}]',
        r"a\.json:2: text follows the end of the array",
    ),
    "an array of strings": (
        "a.json",
        b'["a", "b"]',
        refused(r"a\.json:1: is a JSON list whose element 1 is a str", "jq -c"),
    ),
    "an array without the key": (
        "a.json",
        b'[{"text": "a"},\n{"body": "b"}]',
        refused(r"a\.json:2: element 2: has no key", "'body'"),
    ),
    "a line that is a string": ("a.jsonl", b'{"text": "a"}\n"b"\n', r"a\.jsonl:2: is a JSON str"),
    "columns in an object": ("a.json", b'{"text": ["a", "b"]}', r"the value of 'text' is a list, not text"),
    "a number of many digits as the text": (
        "a.jsonl",
        b'{"text": ' + b"9" * 5000 + b"}",
        "the value of 'text' is a int",
    ),
    "an object as the text": (
        "a.jsonl",
        b'{"text": {"content": "a", "id": 1}}',
        refused("is a dict, not text", "named with a dot: 'text.content'"),
    ),
    "a nested key not named": (
        "a.jsonl",
        b'{"meta": {"text": "a"}}',
        refused("has no key", "its keys are 'meta', 'meta.text'"),
    ),
    "nested too deep": (
        "a.jsonl",
        lines() + b'{"text": ' + b"[" * 100_000,
        r"a\.jsonl:41: is not valid JSON: it is nested too deep",
    ),
    "an empty .gz": ("a.jsonl.gz", b"", refused("its name says that it is compressed", "fetch it again")),
    "a .gz that is none": (
        "a.jsonl.gz",
        lines(),
        refused("its name says that it is compressed", "Rename it"),
    ),
    "gzip in gzip": (
        "a.jsonl.gz",
        gzip.compress(gzip.compress(lines())),
        refused("gzip inside gzip", "Decompress it once"),
    ),
    "Parquet in gzip": (
        "a.parquet.gz",
        gzip.compress(b"PAR1" + bytes(50)),
        refused("Parquet file compressed with gzip as a whole", "Decompress"),
    ),
    "a tar in gzip": (
        "a.txt.gz",
        gzip.compress(bytes(257) + b"ustar\0" + bytes(300)),
        refused("a tar archive", "Unpack"),
    ),
    "gzip with something behind it": (
        "a.jsonl.gz",
        gzip.compress(lines()) + b"garbage",
        refused("gzip stream is damaged near there", "again"),
    ),
    "zstd with something behind it": (
        "a.jsonl.zst",
        zst(lines()) + b"garbage",
        "zstd stream is damaged near there",
    ),
    "bzip2 with something behind it": (
        "a.jsonl.bz2",
        bz2.compress(lines()) + b"garbage",
        "bzip2 stream is damaged near there",
    ),
    "xz with something behind it": (
        "a.jsonl.xz",
        lzma.compress(lines()) + b"garbage" * 9,
        "xz stream is damaged near there",
    ),
    "lz4": (
        "a.jsonl",
        b"\x04\x22\x4d\x18" + bytes(20),
        refused(r"a\.jsonl: byte 0: is compressed with lz4", "Decompress it"),
    ),
    "7z": ("a.txt", b"7z\xbc\xaf\x27\x1c" + bytes(20), refused("a 7z archive", "Unpack it")),
    "RAR": ("a.txt", b"Rar!\x1a\x07\x01\0" + bytes(20), refused("a RAR archive", "Unpack it")),
    "tar": (
        "a.txt",
        b"a.txt".ljust(257, b"\0") + b"ustar\x0000" + bytes(300),
        refused("a tar archive", "Unpack it"),
    ),
    "PDF": ("a.txt", b"%PDF-1.7\n%\xe2\xe3", refused("a PDF document", "Save it as plain text")),
    "RTF": ("a.txt", rb"{\rtf1\ansi text}", refused("an RTF document", "Save it as plain text")),
    "an old Word document": (
        "a.txt",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(20),
        refused("an office document", "Save it as plain text"),
    ),
    "a Git LFS pointer": (
        "a.parquet",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        refused("Git LFS pointer", "git lfs pull"),
    ),
    "macOS's notes": ("._a.txt", b"\0\5\x16\7\0\2\0\0Mac OS X", refused("AppleDouble", "Remove it")),
    "SQLite": (
        "a.txt",
        b"SQLite format 3\0" + bytes(20),
        refused("a SQLite database", "Parquet or JSON lines"),
    ),
    "Arrow": ("a.parquet", b"ARROW1\0\0" + bytes(20), refused("an Arrow", "Parquet or JSON lines")),
    "an image": ("a.txt", b"\x89PNG\r\n\x1a\n" + bytes(20), "an image"),
    "an unknown ending": (
        "a.csv",
        b"text\nabc",
        refused(r"a\.csv has none of the endings", r"\.json", "corpus.format"),
    ),
    "no ending": ("data", b'{"text": "a"}', refused("data has none of the endings", "corpus.format")),
    "Parquet read as text": (
        "a.bin",
        lambda path: table(path, text=["a"]),
        refused("corpus.format = txt", "is a Parquet file"),
        {"format": "txt"},
    ),
    "gzip read as Parquet": (
        "a.bin",
        gzip.compress(b"a"),
        refused("compressed with gzip, not Parquet"),
        {"format": "parquet"},
    ),
    "text named .parquet": (
        "a.parquet",
        lines(),
        refused(r"a\.parquet: is not a sound Parquet file", "again"),
    ),
    "an empty .parquet": ("a.parquet", b"", r"a\.parquet: is not a sound Parquet file"),
    "two columns of one name": (
        "a.parquet",
        lambda path: pq.write_table(DUPLICATE, path),
        refused("has 2 columns named 'text'", "Rename one"),
    ),
    "another case": (
        "a.parquet",
        lambda path: table(path, Text=["a"]),
        refused("has no column", "'Text', which differs in case"),
    ),
    "a struct": (
        "a.parquet",
        lambda path: table(path, text=[{"content": "a", "id": 1}]),
        refused(
            r"'text' holds struct<content: string, id: int64>, not text", r"named with a dot: 'text\.content'"
        ),
    ),
    "a list": (
        "a.parquet",
        lambda path: table(path, text=[["a", "b"]]),
        refused(r"'text' holds list<element: string>, not text", "meta.text"),
    ),
    "a field inside a list": (
        "a.parquet",
        lambda path: table(path, text=[[{"t": "a"}]]),
        refused("has no column", r"'text' holds list<.*>, of which no field can be read"),
        {"text_column": "text.t"},
    ),
    "a nested column not named": (
        "a.parquet",
        lambda path: table(path, meta=[{"text": "a"}]),
        refused("has no column", "'meta', 'meta.text'"),
    ),
    "binary that is no UTF-8": (
        "a.parquet",
        lambda path: table(path, text=[b"a", None, b"caf\xe9"]),
        refused("row 2: byte 3 is not valid UTF-8"),
    ),
    "binary in UTF-16": (
        "a.parquet",
        lambda path: table(path, text=["abc".encode("utf-16-le")]),
        refused("row 0: byte 1", "UTF-16LE", "Convert"),
    ),
    "numbers": (
        "a.parquet",
        lambda path: table(path, text=[1, 2], body=["a", "b"]),
        refused("'text' holds int64, not text", "'body'"),
    ),
    **{
        f"{name} cut off": (
            f"a.jsonl.{name}",
            pack(lines(WORDS))[:-6],
            refused(rf"a\.jsonl\.{name}: byte [\d,]+: the file ends in the middle", "cut off"),
        )
        for name, pack in PACKERS.items()
    },
    **{
        f"{name} damaged": (
            f"a.jsonl.{name}",
            (data := pack(lines(WORDS)))[: len(data) // 2]
            + bytes(byte ^ 0x55 for byte in data[len(data) // 2 :]),
            rf"a\.jsonl\.{name}: byte [\d,]+: "
            r"(its \w+ stream is damaged near there|the file ends in the middle)",
        )
        for name, pack in PACKERS.items()
    },
    **{
        f"a {kind} file": (
            f"a.{ending}",
            lambda path, names=names: zipped(path, names),
            refused(kind, remedy),
        )
        for kind, ending, names, remedy in (
            ("ZIP archive", "txt", ["a.txt"], "Unpack it"),
            ("ZIP archive", "jsonl", ["a.jsonl"], "Unpack it"),
            ("office document", "txt", ["[Content_Types].xml", "word/document.xml"], "Save it as plain text"),
            ("EPUB book", "txt", ["mimetype"], "Save it as plain text"),
        )
    },
}


def zipped(path: Path, names: list[str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "application/epub+zip" if name == "mimetype" else "text")


def written(folder: Path, name: str, content: Content) -> Path:
    path = folder / name
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)
    return path


def spec_for(*paths: Path | str, **corpus: Any) -> TokenizeSpec:
    return TokenizeSpec(corpus=FilesCorpus(paths=tuple(map(str, paths)), **corpus))


def read(*paths: Path | str, **corpus: Any) -> list[str]:
    spec = spec_for(*paths, **corpus)
    return list(documents(spec.corpus, locate(spec)))


@pytest.mark.parametrize("kind", READ)
def test_it_is_read_whole_and_in_order(tmp_path: Path, kind: str) -> None:
    name, content, texts, *corpus = READ[kind]
    path = written(tmp_path, name, content)
    spec = spec_for(path, **(corpus[0] if corpus else {}))
    seen: list[int] = []
    assert list(documents(spec.corpus, locate(spec), on_read=seen.append)) == texts
    assert sum(seen) == path.stat().st_size
    assert min(seen, default=0) >= 0


@pytest.mark.parametrize("kind", REFUSED)
def test_it_is_refused_with_file_place_and_remedy(tmp_path: Path, kind: str) -> None:
    name, content, said, *corpus = REFUSED[kind]
    path = written(tmp_path, name, content)
    with pytest.raises(SpecError, match=f"(?s){said}") as caught:
        read(path, **(corpus[0] if corpus else {}))
    assert str(path) in str(caught.value)
    if "utf-16" in kind:
        assert "WINDOWS" not in str(caught.value)


@settings(deadline=None)
@given(
    texts=st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30), max_size=8),
    indent=st.sampled_from([None, 0, 3]),
    ascii_only=st.booleans(),
    size=st.integers(1, 40),
)
def test_arrays_come_back_wherever_the_reader_cuts_them(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str],
    indent: int | None,
    ascii_only: bool,
    size: int,
) -> None:
    rows = [{"id": number, "text": text, "more": [None, {"x": 1.5}]} for number, text in enumerate(texts)]
    path = tmp_path_factory.mktemp("array") / "a.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.corpora.json_texts._READ_BYTES", size)
        assert read(path) == texts


@pytest.mark.parametrize("name", PACKERS)
def test_a_compressed_file_that_is_cut_anywhere_is_never_read_as_if_it_were_whole(
    tmp_path: Path, name: str
) -> None:
    packed = PACKERS[name](lines())
    for size in range(0, len(packed), 3):
        path = written(tmp_path, f"a.jsonl.{name}", packed[:size])
        with pytest.raises(SpecError, match=rf"a\.jsonl\.{name}: byte"):
            read(path)


@pytest.mark.parametrize("name", ["gz", "zst", "json"])
def test_memory_stays_flat_while_a_large_file_is_read(tmp_path: Path, name: str) -> None:
    generator = random.Random(0)
    rows = [json.dumps({"text": f"{number} {generator.getrandbits(4000)} "}) for number in range(4000)]
    data = f"[{','.join(rows)}]".encode() if name == "json" else "\n".join(rows).encode()
    path = written(
        tmp_path, f"a.jsonl.{name}" if name != "json" else "a.json", PACKERS.get(name, bytes)(data)
    )
    assert len(data) > 4_500_000
    assert peak_of_reading(path, 4000) < 1_500_000


@pytest.mark.parametrize("name", ["gz", "zst"])
def test_memory_stays_bounded_where_little_becomes_much(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, f"a.jsonl.{name}", PACKERS[name](lines(["x" * 1_000_000]) * 150))
    assert path.stat().st_size < 200_000
    assert peak_of_reading(path, 150) < 50_000_000


def peak_of_reading(path: Path, num_documents: int) -> int:
    spec = spec_for(path)
    manifest = locate(spec)
    tracemalloc.start()
    try:
        assert sum(1 for _ in documents(spec.corpus, manifest)) == num_documents
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_token_shard_is_no_text(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "val") as writer:
        writer.write(np.array([1, 2, 3], np.uint16))
    with pytest.raises(SpecError, match=r"a token shard, not text.*tokenize\.corpus\.kind=shards"):
        read(writer.paths[0], format="txt")


def test_documents_that_no_memory_could_hold_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("contents", "json_texts"):
        monkeypatch.setattr(f"stages.corpora.{module}.MAX_DOCUMENT_BYTES", 100_000)
    monkeypatch.setattr("stages.corpora.json_texts._READ_BYTES", 10_000)
    text = "x" * 200_000
    cases: dict[str, tuple[Content, str]] = {
        "a.txt": (text.encode(), r"a\.txt: has more than 100,000 bytes of text.*Split it"),
        "a.txt.gz": (gzip.compress(text.encode()), r"a\.txt\.gz: has more than 100,000 bytes"),
        "a.jsonl": (lines() + lines([text]), r"a\.jsonl:41: the line is longer than 100,000 bytes"),
        "a.json": (
            b"[" + json.dumps({"text": text}).encode() + b"]",
            r"a\.json:1: element 1 is longer than 100,000",
        ),
    }
    for name, (content, said) in cases.items():
        with pytest.raises(SpecError, match=said):
            read(written(tmp_path, name, content))


def test_a_file_that_is_cut_while_it_is_read_is_not_blamed_for_its_content(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", lines(WORDS * 200))
    spec = spec_for(path)
    texts = documents(spec.corpus, locate(spec))
    next(texts)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 30)
    with pytest.raises(StageError, match=r"changed while it was read: .*was written to"):
        list(texts)
    path = written(tmp_path, "b.jsonl", lines(WORDS))
    spec = spec_for(path)
    texts = documents(spec.corpus, locate(spec))
    next(texts)
    path.unlink()
    with pytest.raises(StageError, match=r"changed while it was read: .*was removed"):
        list(texts)


def tokenize(folder: Path, path: Path, vocab_size: int = 320, **corpus: Any) -> TokenizedCorpus:
    spec = TokenizeSpec(
        corpus=FilesCorpus(paths=(str(path),), **corpus),
        tokenizer=TokenizerSpec(vocab_size=vocab_size),
        split=FirstDocuments(num_val_documents=5),
        compressor_baselines=False,
    )
    out = folder / f"out-{random.getrandbits(64):x}"
    out.mkdir()
    return tokenize_corpus(
        spec, locate(spec), Workspace(folder, out, PurePosixPath(out.name), RunOptions(), FileHashes(None))
    )


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_broken_line_is_blamed_on_its_file_and_line_and_not_on_the_vocabulary(
    tmp_path: Path, name: str
) -> None:
    data = lines(WORDS) + b'{"text": "abc"\n' + lines(WORDS)
    path = written(tmp_path, name, gzip.compress(data) if name.endswith("gz") else data)
    with pytest.raises(SpecError, match=r"\.jsonl(\.gz)?:41: is not valid JSON") as caught:
        tokenize(tmp_path, path)
    assert "vocab_size" not in str(caught.value)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, StageError, OSError, RuntimeError])
def test_errors_while_the_tokenizer_reads_come_out_as_they_are(kind: type[BaseException]) -> None:
    error = kind("set it to a value <= 5")

    def texts() -> Iterator[str]:
        yield from WORDS
        raise error

    with pytest.raises(kind) as caught:
        train_tokenizer(TokenizerSpec(vocab_size=320), texts())
    assert caught.value is error


@pytest.mark.parametrize(
    "texts", [["ab " * (number + 1) for number in range(200)], ["a"] * 50, ["x" * 100_000] * 7]
)
def test_too_few_characters_are_answered_with_the_largest_vocabulary_that_works(
    tmp_path: Path, texts: list[str]
) -> None:
    path = written(tmp_path, "a.jsonl", lines(texts[:5] + [f"{text} ." for text in texts[5:]]))
    with pytest.raises(
        SpecError, match=r"tokenizer\.vocab_size = 1024: .*too small.*Set it to at most (\d+)"
    ) as caught:
        tokenize(tmp_path, path, 1024)
    most = int(str(caught.value).partition("at most ")[2].split(",")[0])
    assert tokenize(tmp_path, path, most).vocab_size == most
    with pytest.raises(SpecError, match=f"at most {most}"):
        tokenize(tmp_path, path, most + 1)


@pytest.mark.parametrize("texts", [pa.nulls(20), pa.array([], pa.string()), pa.array([None, "", " \n"])])
def test_a_corpus_without_text_has_no_documents(tmp_path: Path, texts: pa.Array) -> None:
    table(path := tmp_path / "a.parquet", text=texts)
    with pytest.raises(SpecError, match="corpus: no documents"):
        tokenize(tmp_path, path)


def test_null_rows_are_counted(tmp_path: Path) -> None:
    table(
        path := tmp_path / "a.parquet",
        text=[text if number < 5 or number % 3 else None for number, text in enumerate(WORDS)],
    )
    result = tokenize(tmp_path, path)
    assert result.val.num_documents == 5
    assert (result.train.num_documents, result.train.num_empty_documents_skipped) == (23, 12)


def test_megabytes_without_white_space_are_tokenized_and_more_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, "a.jsonl", lines([*WORDS, "x" * 2_000_000]))
    assert tokenize(tmp_path, path, 300).train.utf8_bytes > 2_000_000
    monkeypatch.setattr("stages.tokenization.fast_encode._MAX_BYTES_AT_ONCE", 1_000_000)
    with pytest.raises(SpecError, match=r"a run of text without white space has 2,000,000 bytes.*Split it"):
        tokenize(tmp_path, path, 300)
    encoder = TextEncoder(train_tokenizer(TokenizerSpec(vocab_size=320), WORDS))
    encoder.by_words = False
    with pytest.raises(SpecError, match="does not encode word by word has 1,200,000 bytes"):
        encoder.encode(["some words. " * 100_000])
