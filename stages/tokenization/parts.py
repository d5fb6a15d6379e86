"""Parts of a large corpus: neighbouring files that one process tokenizes, apart from all others.

A large file is a part of its own; small neighbours share one. The borders follow from the files from the
first on, so a further file at the end leaves the earlier parts as they are.
"""

from collections.abc import Iterator

from schemas.files import SourceFile
from schemas.tokenize_corpus import (
    CorpusManifest,
    FilesCorpus,
    HashFraction,
    HuggingFaceCorpus,
    TextFormat,
    TokenizeSpec,
)
from schemas.tokenize_parts import CorpusPart
from stages.corpora.contents import COMPRESSED_ENDINGS

PART_BYTES = 32_000_000
"""Text in a part at least, about. A part that small takes half a second, its task 0.05 s."""
_TEXT_IN_COMPRESSED = 3  # bytes of text for each byte of Parquet or of a compressed file, about


def corpus_parts(spec: TokenizeSpec, manifest: CorpusManifest) -> list[CorpusPart]:
    """The parts of the corpus in order; an empty list if it is tokenized whole (`why_whole`)."""
    if why_whole(spec) is not None:
        return []
    groups = list(_groups(list(zip(manifest.files, manifest.formats, strict=True))))
    if len(groups) < 2:
        return []
    return [
        CorpusPart(
            source=manifest.source,
            files=tuple(file for file, _ in group),
            formats=tuple(file_format for _, file_format in group),
            revision=manifest.revision,
        )
        for group in groups
    ]


def why_whole(spec: TokenizeSpec) -> str | None:
    """Why a corpus of this kind or split has no parts, however large it is; None if it may have some."""
    if not isinstance(spec.corpus, FilesCorpus | HuggingFaceCorpus):
        return f"corpus.kind = {spec.corpus.kind} has none"
    if not isinstance(spec.split, HashFraction):
        return (
            f"split.kind = {spec.split.kind} needs the number of each document, and compares all with those "
            "of the validation split; hash_fraction needs neither"
        )
    return None


def _groups(files: list[tuple[SourceFile, TextFormat]]) -> Iterator[list[tuple[SourceFile, TextFormat]]]:
    group: list[tuple[SourceFile, TextFormat]] = []
    size = 0
    for file, file_format in files:
        group.append((file, file_format))
        size += _text_bytes(file, file_format)
        if size >= PART_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _text_bytes(file: SourceFile, file_format: TextFormat) -> int:
    packed = file_format == "parquet" or file.path.lower().endswith(COMPRESSED_ENDINGS)
    return file.num_bytes * (_TEXT_IN_COMPRESSED if packed else 1)
