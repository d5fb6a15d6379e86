"""Text, JSON-lines and Parquet files, streamed. A text file is one document, a line or a row is one otherwise.

All text is UTF-8. NUL and other control characters are text like any other: SentencePiece's normalisation drops most of
them and the rest fall back to byte pieces. Missing texts (null) and blank JSON lines are empty documents or none.
"""

import glob
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from schemas.errors import SpecError
from schemas.files import SourceFile
from schemas.tokenize_corpus import CorpusManifest, FilesCorpus, TextFormat
from stages.corpora.sources import OnRead, source_file, unchanged
from stages.hashing import FileHashes

ENDINGS: dict[str, TextFormat] = {".txt": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_ROWS_AT_ONCE = 256
_BOM = "\ufeff"


def locate(corpus: FilesCorpus, hashes: FileHashes) -> CorpusManifest:
    """The files that match, each once, sorted by path. Raises SpecError when a pattern matches none or a file is of unknown kind."""
    if not corpus.paths:
        raise SpecError('corpus.paths = (): give at least one file or glob, for example "data/**/*.jsonl"')
    found = sorted({path for pattern in corpus.paths for path in _matches(pattern)})
    formats = tuple(format_by_ending(path) if corpus.format == "auto" else corpus.format for path in found)
    return CorpusManifest(
        source=f"{len(found)} file{'s' * (len(found) != 1)}: {', '.join(corpus.paths)}",
        files=tuple(source_file(path, hashes, "corpus.paths") for path in found),
        formats=formats,
    )


def documents(file: SourceFile, file_format: TextFormat, column: str, hashes: FileHashes, on_read: OnRead) -> Iterator[str]:
    """The texts of one file, streamed. Raises SpecError for content that cannot be used, StageError for a changed file."""
    with unchanged(file, hashes) as path:
        if file_format == "txt":
            yield _text(path.read_bytes(), path)
            on_read(file.num_bytes)
        elif file_format == "jsonl":
            yield from _json_lines(path, column, on_read)
        else:
            yield from _parquet(path, file.num_bytes, column, on_read)


def format_by_ending(path: str) -> TextFormat:
    """Format of a file by its ending. Raises SpecError for an ending that is not known."""
    try:
        return ENDINGS[Path(path).suffix.lower()]
    except KeyError:
        raise SpecError(f"corpus.paths: {path} has none of the endings {', '.join(ENDINGS)}. Rename it or set corpus.format") from None


def _matches(pattern: str) -> list[str]:
    full = Path(pattern).expanduser().absolute()
    if full.is_dir():
        raise SpecError(f"corpus.paths = {pattern}: is a folder. Give a glob of its files, for example {Path(pattern) / '**' / '*.txt'}")
    if full.exists():
        return [str(full)]
    paths = [path for path in glob.glob(str(full), recursive=True) if not Path(path).is_dir()]
    if not paths:
        raise SpecError(f"corpus.paths = {pattern}: matches no file (looked for {full}). Give a file or a glob that matches")
    return paths


def _text(data: bytes, path: Path, offset: int = 0) -> str:
    try:
        return data.decode("utf-8").removeprefix(_BOM if offset == 0 else "")
    except UnicodeDecodeError as error:
        raise SpecError(
            f"{path}: byte {offset + error.start:,} is not valid UTF-8 ({error.reason}). Convert the file, "
            "for example with: iconv -f WINDOWS-1252 -t UTF-8"
        ) from error


def _json_lines(path: Path, key: str, on_read: OnRead) -> Iterator[str]:
    offset = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            text = _text(line, path, offset)
            if not text.isspace():
                yield _json_text(text, key, f"{path}:{number}")
            offset += len(line)
            on_read(len(line))


def _json_text(line: str, key: str, place: str) -> str:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{place}: is not valid JSON ({error}). Each line must be one JSON object") from error
    if not isinstance(row, dict):
        raise SpecError(f"{place}: is a JSON {type(row).__name__}. Each line must be one JSON object with the text under {key!r}")
    if key not in row:
        raise SpecError(
            f"{place}: has no key corpus.text_column = {key!r}; its keys are {_names(row)}. Set corpus.text_column to one of them"
        )
    return _checked(row[key], f"{place}: the value of {key!r}")


def _checked(value: Any, place: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise SpecError(f"{place} is a {type(value).__name__}, not text. Set corpus.text_column to the name of the text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise SpecError(
                f"{place} has half of a surrogate pair at character {error.start:,}, which no UTF-8 text can hold. Repair it"
            ) from error
    return value


def _parquet(path: Path, file_bytes: int, column: str, on_read: OnRead) -> Iterator[str]:
    # Slow to import, and only this kind of file needs it.
    import pyarrow as pa
    import pyarrow.parquet as pq

    read, row = 0, 0
    try:
        with pq.ParquetFile(path) as table:
            _check_column(path, table.schema_arrow, column)
            for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[column]):
                yield from _texts_of_column(batch.column(0), f"{path}: column {column!r}, row", row)
                row += batch.num_rows
                progress = file_bytes * row // max(table.metadata.num_rows, row)
                on_read(progress - read)
                read = progress
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's trouble, not the file's
        raise SpecError(f"{path}: is not a sound Parquet file ({' '.join(str(error).split())[:200]}). Write it again") from error
    on_read(file_bytes - read)


def _check_column(path: Path, schema: Any, column: str) -> None:
    import pyarrow as pa

    if column not in schema.names:
        raise SpecError(
            f"{path}: has no column corpus.text_column = {column!r}; its columns are {_names(schema.names)}. "
            "Set corpus.text_column to one of them"
        )
    kind = schema.field(column).type
    value_kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(value_kind) or pa.types.is_large_string(value_kind) or pa.types.is_string_view(value_kind)):
        raise SpecError(
            f"{path}: column corpus.text_column = {column!r} holds {kind}, not text. Set corpus.text_column to a column of strings"
        )


def _texts_of_column(values: Any, place: str, first_row: int) -> Iterator[str]:
    try:
        texts = values.to_pylist()
    except UnicodeDecodeError:
        for row, value in enumerate(values, first_row):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                raise SpecError(
                    f"{place} {row:,}: byte {error.start:,} is not valid UTF-8 ({error.reason}). Write the file again"
                ) from error
        raise
    return (text or "" for text in texts)


def _names(names: Any) -> str:
    shown = [repr(str(name)) for name in names]
    return ", ".join(shown[:20]) + (f" and {len(shown) - 20} more" if len(shown) > 20 else "") if shown else "none"
