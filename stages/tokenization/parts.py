"""Parts of a large corpus: neighbouring files that one process tokenizes, apart from all others.

A large file is a part of its own; small neighbours share one. A large Parquet file on this machine has a part
for each run of its row groups. The borders follow from the files from the first on, so a further file at the
end leaves the earlier parts as they are.
"""

from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path

from schemas.files import SourceFile
from schemas.row_groups import RowGroups
from schemas.tokenize_corpus import (
    Corpus,
    CorpusManifest,
    FilesCorpus,
    HashFraction,
    HuggingFaceCorpus,
    TextFormat,
    TokenizeSpec,
)
from schemas.tokenize_parts import CorpusPart
from stages.corpora.contents import COMPRESSED_ENDINGS
from stages.corpora.objects import is_address
from stages.corpora.parquet_texts import row_groups

PART_BYTES = 32_000_000
"""Text in a part at least, about. A part that small takes 0.5 to 3 s, its task 0.05 s."""
_TEXT_IN_COMPRESSED = 3  # bytes of text for each byte of Parquet or of a compressed file, about


def corpus_parts(spec: TokenizeSpec, manifest: CorpusManifest) -> list[CorpusPart]:
    """The parts of the corpus in order; an empty list if it is tokenized whole (`why_whole`)."""
    if why_whole(spec) is not None:
        return []
    parts = list(_parts(spec.corpus, manifest))
    return parts if len(parts) > 1 else []


def why_whole(spec: TokenizeSpec) -> str | None:
    """Why a corpus of this kind or split has no parts, however large it is; None if it may have some."""
    if not isinstance(spec.corpus, FilesCorpus | HuggingFaceCorpus):
        return f"tokenize.corpus.kind = {spec.corpus.kind} has none"
    if not isinstance(spec.split, HashFraction):
        return (
            f"tokenize.split.kind = {spec.split.kind} needs the number of each document, and compares all "
            "with those of the validation split; hash_fraction needs neither"
        )
    return None


def _parts(corpus: Corpus, manifest: CorpusManifest) -> Iterator[CorpusPart]:
    group: list[tuple[SourceFile, TextFormat]] = []
    size = 0
    for file, file_format in zip(manifest.files, manifest.formats, strict=True):
        inside = _parts_inside(corpus, manifest, file) if file_format == "parquet" else []
        if not inside:
            group.append((file, file_format))
            size += _text_bytes(file, file_format)
        if group and (inside or size >= PART_BYTES):
            yield _part(manifest, group)
            group, size = [], 0
        yield from inside
    if group:
        yield _part(manifest, group)


def _part(manifest: CorpusManifest, group: list[tuple[SourceFile, TextFormat]]) -> CorpusPart:
    files, formats = zip(*group, strict=True)
    return CorpusPart(source=manifest.source, files=files, formats=formats, revision=manifest.revision)


def _parts_inside(corpus: Corpus, manifest: CorpusManifest, file: SourceFile) -> list[RowGroups]:
    """The parts of a Parquet file on this machine, if there are several.

    An object and a file of a dataset have none: each part would fetch all of it.
    """
    if not isinstance(corpus, FilesCorpus) or is_address(file.path):
        return []
    groups = row_groups(Path(file.path), corpus.text_column)
    ends = run_ends([num_bytes for _, num_bytes in groups])
    if len(ends) < 2:
        return []
    whole = dict(_part(manifest, [(file, "parquet")]))
    rows = [0, *accumulate(num_rows for num_rows, _ in groups)]
    read = [file.num_bytes * row // max(rows[-1], 1) for row in rows]
    return [
        RowGroups(**whole, first=first, end=end, total=len(groups), num_bytes=read[end] - read[first])
        for first, end in pairwise([0, *ends])
    ]


def run_ends(sizes: list[int]) -> list[int]:
    """Where each run of neighbours ends that has PART_BYTES; the last run has what is left over too."""
    ends, size = [], 0
    for end, num_bytes in enumerate(sizes, start=1):
        size += num_bytes
        if size >= PART_BYTES:
            ends.append(end)
            size = 0
    ends[-1:] = [len(sizes)]
    return ends


def _text_bytes(file: SourceFile, file_format: TextFormat) -> int:
    packed = file_format == "parquet" or file.path.lower().endswith(COMPRESSED_ENDINGS)
    return file.num_bytes * (_TEXT_IN_COMPRESSED if packed else 1)
