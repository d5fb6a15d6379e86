"""Corpora: the sources of text, one module a source.

`locate` lists a corpus's files with their sha256, `documents` streams its text.
"""

from collections.abc import Iterator
from pathlib import Path

from schemas.row_groups import RowGroups
from schemas.tokenize_corpus import (
    Corpus,
    CorpusManifest,
    FilesCorpus,
    HuggingFaceCorpus,
    ShardsCorpus,
    SotuCorpus,
    TokenizeSpec,
)
from stages.corpora import files, huggingface, shards, sotu
from stages.corpora.objects import fetched, is_address
from stages.corpora.sources import OnRead, ignore_read, source_file
from stages.store.hashing import FileHashes

_READ_ANEW = FileHashes(None)


def locate(spec: TokenizeSpec, hashes: FileHashes = _READ_ANEW, memory: Path | None = None) -> CorpusManifest:
    """Every file that tokenization reads, with its sha256, in the order of reading; a ready-made tokenizer
    included.

    `hashes` remembers digests between runs, so that a large corpus is not hashed again. `memory` is a folder
    for the answers of a dataset hub and the digests of objects. Raises SpecError for a file that is missing,
    unreadable or of unknown kind, and for a dataset that does not exist. Raises ConnectionError if the hub
    cannot be reached and `memory` has no answer, or if object storage fails.
    """
    corpus = spec.corpus
    if isinstance(corpus, ShardsCorpus):
        return shards.locate(corpus, spec.tokenizer.model_path, hashes)
    model = (
        None
        if spec.tokenizer.model_path is None
        else source_file(spec.tokenizer.model_path, hashes, "tokenize.tokenizer.model_path")
    )
    if isinstance(corpus, SotuCorpus):
        return sotu.locate(corpus, hashes).derive(tokenizer_model=model)
    if isinstance(corpus, FilesCorpus):
        return files.locate(corpus, hashes, memory).derive(tokenizer_model=model)
    return huggingface.locate(corpus, hashes, memory).derive(tokenizer_model=model)


def documents(
    corpus: Corpus, manifest: CorpusManifest, hashes: FileHashes = _READ_ANEW, on_read: OnRead = ignore_read
) -> Iterator[str]:
    """The documents' texts in order, streamed: memory stays that of the largest document or Parquet batch.

    Each file is checked against the manifest before it is read. `on_read` gets the number of file bytes read
    since its last call. Raises SpecError for unusable text, with file and position, and StageError for a file
    that changed since the manifest was made.
    """
    if isinstance(corpus, ShardsCorpus):
        raise TypeError("ready-made shards have no text to read")
    column = "" if isinstance(corpus, SotuCorpus) else corpus.text_column
    for file, file_format in zip(manifest.files, manifest.formats, strict=True):
        if is_address(file.path):
            with fetched(file, hashes.folder) as path:
                copy = file.derive(path=str(path))
                yield from files.documents(copy, file_format, column, _READ_ANEW, on_read)
            continue
        local = (
            huggingface.fetch(corpus, manifest, file, hashes)
            if isinstance(corpus, HuggingFaceCorpus)
            else file
        )
        part = manifest if isinstance(manifest, RowGroups) else None
        yield from files.documents(local, file_format, column, hashes, on_read, part)
