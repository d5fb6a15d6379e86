"""Corpus of kind `files`: text, JSON and Parquet files, streamed.

A text file is one document; in other files each object or row is one. All text is UTF-8. NUL and other
control characters inside a text are ordinary text: SentencePiece's normalisation drops most of them, the
others become byte pieces. Missing texts (null) are empty documents; blank lines are none.
"""

import logging
from collections.abc import Iterator
from pathlib import Path, PurePath

from schemas.errors import SpecError
from schemas.files import SourceFile
from schemas.row_groups import RowGroups
from schemas.tokenize_corpus import CorpusManifest, FilesCorpus, TextFormat
from stages.corpora import json_texts, parquet_texts
from stages.corpora.contents import COMPRESSED_ENDINGS, decode, opened, read_whole, refuse_special
from stages.corpora.objects import find_objects, is_address
from stages.corpora.paths import Found, find_files
from stages.corpora.sources import OnRead, source_file, unchanged
from stages.store.hashing import FileHashes

log = logging.getLogger(__name__)

ENDINGS: dict[str, TextFormat] = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
}


def locate(corpus: FilesCorpus, hashes: FileHashes, memory: Path | None = None) -> CorpusManifest:
    """The files that match, each once, sorted by path; then the objects, sorted by address.

    `memory` is a folder for digests of objects. Raises SpecError if a pattern matches no file, or a file's
    kind is unknown by name and first bytes.
    """
    if not corpus.paths:
        raise SpecError(
            'tokenize.corpus.paths = (): give at least one file or glob, for example "data/**/*.jsonl"'
        )
    addresses = [path for path in corpus.paths if is_address(path)]
    matches = find_files(path for path in corpus.paths if not is_address(path))
    objects = find_objects(addresses, memory) if addresses else []
    left_out = _left_out(matches)
    if left_out:
        log.info("tokenize.corpus.paths: %s", left_out)
    found = [source_file(path, hashes, "tokenize.corpus.paths") for path in matches.paths] + objects
    formats = [_format(path, corpus) for path in matches.paths]
    formats += [_format_by_name(item.path, corpus) for item in objects]
    source = f"{len(found)} file{'s' * (len(found) != 1)}: {', '.join(corpus.paths)}"
    return CorpusManifest(
        source=source + (f" ({left_out})" if left_out else ""),
        files=tuple(found),
        formats=tuple(formats),
        num_hidden_files=matches.num_hidden,
    )


def documents(
    file: SourceFile,
    file_format: TextFormat,
    column: str,
    hashes: FileHashes,
    on_read: OnRead,
    part: RowGroups | None = None,
) -> Iterator[str]:
    """The texts of one file, or of a `part` of it, streamed.

    Raises SpecError for unusable content, StageError for a changed file.
    """
    with unchanged(file, hashes) as path:
        if file_format == "parquet":
            with opened(path) as content:
                if content.compression is not None:
                    raise SpecError(
                        f"{path}: is compressed with {content.compression}, not Parquet. Set "
                        "tokenize.corpus.format, or rename the file"
                    )
            yield from parquet_texts.documents(path, file.num_bytes, column, on_read, part)
            return
        with opened(path) as content:
            if content.is_parquet:
                raise SpecError(
                    f"{path}: is a Parquet file, not {file_format}. Rename it, or set "
                    "tokenize.corpus.format=parquet"
                )
            if file_format == "txt":
                yield _text(read_whole(content), path)
                on_read(file.num_bytes)
            else:
                yield from json_texts.documents(content, column, on_read)


def format_by_ending(path: str) -> TextFormat:
    """Format of a file by its ending, after the ending of a compressed file is removed.

    Raises SpecError for an unknown ending.
    """
    try:
        return ENDINGS[data_ending(path)]
    except KeyError:
        compressed = f" (also compressed: {', '.join(COMPRESSED_ENDINGS)})"
        raise SpecError(
            f"tokenize.corpus.paths: {path} has none of the endings {', '.join(ENDINGS)}{compressed}. Rename "
            "it or set tokenize.corpus.format"
        ) from None


def data_ending(path: str) -> str:
    """The ending in lower case, without that of a compressed file: ".jsonl" of a.JSONL.gz."""
    name = PurePath(PurePath(path).name.lower())
    return PurePath(name.stem).suffix if name.suffix in COMPRESSED_ENDINGS else name.suffix


def _format(path: str, corpus: FilesCorpus) -> TextFormat:
    try:
        refuse_special(Path(path), f"tokenize.corpus.paths = {path}")
        with opened(Path(path)) as content:
            is_parquet = content.is_parquet
    except OSError as error:
        raise SpecError(
            f"tokenize.corpus.paths = {path}: cannot be read ({error.strerror or error}). Check its "
            "permissions"
        ) from error
    if corpus.format == "auto":
        return "parquet" if is_parquet else format_by_ending(path)
    if is_parquet and corpus.format != "parquet":
        raise SpecError(
            f"tokenize.corpus.format = {corpus.format}: {path} is a Parquet file. Set it to parquet or auto"
        )
    return corpus.format


def _format_by_name(address: str, corpus: FilesCorpus) -> TextFormat:
    return format_by_ending(address) if corpus.format == "auto" else corpus.format


def _left_out(matches: Found) -> str:
    counts = {
        "hidden files": matches.num_hidden,
        "hidden folders": matches.num_hidden_folders,
        "further names of the same files": matches.num_repeated,
    }
    parts = [f"{count:,} {what}" for what, count in counts.items() if count]
    return f"left out: {', '.join(parts)}" if parts else ""


def _text(data: bytes, path: Path) -> str:
    """A text file's text with its line ends as \\n, without a byte order mark."""
    text = decode(data, path).removeprefix(json_texts.BOM)
    if text.endswith("\0"):
        end = len(data.rstrip(b"\0"))
        raise SpecError(
            f"{path}: byte {end:,}: {len(data) - end:,} NUL bytes end the file: it was not written to its "
            "end. Write it again, or remove them: tr -d '\\000'"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
