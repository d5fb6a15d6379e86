"""Text to token shards: train or take a SentencePiece model, split the documents, encode them, count
everything.

    python -m stages tokenize_corpus --spec spec.json

CorpusManifest -> TokenizedCorpus. The corpus is streamed twice, once for the tokenizer and once for the
shards; memory does not grow with it. Ready-made shards are verified and used where they lie.
"""

import hashlib
import logging
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np

from schemas.errors import StageError
from schemas.printable import one_line
from schemas.tokenize_corpus import (
    CorpusManifest,
    FilesCorpus,
    FirstDocuments,
    ShardsCorpus,
    SplitCounts,
    TokenizedCorpus,
    TokenizeSpec,
)
from schemas.tokenize_parts import SplitSums, TokenizedParts
from stages.core.bits_per_byte import load_token_bytes
from stages.core.shards import BOS_ID, ShardWriter
from stages.corpora import documents, shards
from stages.store.workspace import Workspace
from stages.tokenization.assembly import assemble, check_parts, open_val_texts
from stages.tokenization.fast_encode import TextEncoder, default_threads, encode_stream
from stages.tokenization.reading import ReadBytes
from stages.tokenization.split_writer import SplitWriter, pieces, write_splits, xz_size, zstd_size
from stages.tokenization.splits import refuse_empty_split, split_of
from stages.tokenization.tokenizer import NoTrainingTextError
from stages.tokenization.training_text import write_tokenizer

log = logging.getLogger(__name__)

# Each thread learns the words anew, which does not pay for less.
_SHARED_FROM_BYTES = 50_000_000
_TOKENIZER = "tokenizer.model"
_NAMED_FILES = 3


def tokenize_corpus(spec: TokenizeSpec, manifest: CorpusManifest, work: Workspace) -> TokenizedCorpus:
    """Shards of both splits, their tokenizer and their counts; of the parts, if the options have them.

    Raises SpecError for a corpus, split or vocabulary that cannot be used, with the field and the remedy, and
    StageError for the same document in both splits, a bad ready-made shard, or a file that changed since it
    was hashed.
    """
    if isinstance(spec.corpus, ShardsCorpus):
        return shards.verify(manifest, work.hashes, ReadBytes(manifest, work))
    train = ShardWriter(work.out_dir, "train", spec.shard_tokens)
    val = ShardWriter(work.out_dir, "val", spec.shard_tokens)
    held_out = _HeldOut()
    if (parts := work.runtime.parts) is not None:
        check_parts(parts, manifest)
        counts = _from_parts(spec, parts, work, train, val)
    else:
        counts = _from_text(spec, manifest, work, train, val, held_out)
    log.info(
        "%s: %s training and %s validation documents%s",
        manifest.source,
        f"{counts[0].num_documents:,}",
        f"{counts[1].num_documents:,}",
        held_out.in_words(spec, manifest),
    )
    tokenizer = work.ref(work.out_dir / _TOKENIZER)
    return TokenizedCorpus(
        tokenizer=tokenizer,
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=spec.tokenizer.vocab_size,
        bos_id=BOS_ID,
        train_shards=tuple(work.ref(path) for path in train.paths),
        val_shards=tuple(work.ref(path) for path in val.paths),
        train=counts[0],
        val=counts[1],
    )


def _from_parts(
    spec: TokenizeSpec, parts: TokenizedParts, work: Workspace, train: ShardWriter, val: ShardWriter
) -> tuple[SplitCounts, SplitCounts]:
    (work.out_dir / _TOKENIZER).write_bytes(work.read(parts.tokenizer.model).read_bytes())
    train_sums = assemble([part.train for part in parts.parts], train, work)
    val_sums = assemble([part.val for part in parts.parts], val, work)
    _refuse_empty(spec, train_sums, val_sums)
    with ExitStack() as stack:
        texts = open_val_texts(parts.parts, work, stack)
        return _counts(train_sums), _val_counts(val_sums, texts, spec.compressor_baselines)


def _from_text(
    spec: TokenizeSpec,
    manifest: CorpusManifest,
    work: Workspace,
    train: ShardWriter,
    val: ShardWriter,
    held_out: "_HeldOut",
) -> tuple[SplitCounts, SplitCounts]:
    model_path = work.out_dir / _TOKENIZER
    try:
        write_tokenizer(spec.tokenizer, spec.corpus, spec.split, manifest, work.hashes, model_path)
    except NoTrainingTextError:
        _explain_no_training_text(spec, manifest, work)
        raise
    model, table = model_path.read_bytes(), load_token_bytes(model_path)
    texts = documents(spec.corpus, manifest, work.hashes, ReadBytes(manifest, work))
    check_copies = _CopyDetector() if isinstance(spec.split, FirstDocuments) else _ignore_written

    def on_written(split: str, index: int, ids: np.ndarray) -> None:
        held_out.add(split, index)
        check_copies(split, index, ids)

    # Unnamed, so that nothing of it is left among the results.
    with tempfile.TemporaryFile(dir=work.out_dir) as val_text:
        train_sums, val_sums = write_splits(
            encode_stream(texts, model, _num_threads(manifest, work)),
            spec.split,
            TextEncoder(model),
            SplitWriter(train, table),
            SplitWriter(val, table, val_text),
            on_written,
        )
        _refuse_empty(spec, train_sums, val_sums)
        return _counts(train_sums), _val_counts(val_sums, [val_text], spec.compressor_baselines)


def _refuse_empty(spec: TokenizeSpec, train: SplitSums, val: SplitSums) -> None:
    num_empty = train.num_empty_documents_skipped + val.num_empty_documents_skipped
    num_documents = train.num_documents + val.num_documents
    refuse_empty_split(spec.split, num_documents + num_empty, train.num_documents, val.num_documents)


def _explain_no_training_text(spec: TokenizeSpec, manifest: CorpusManifest, work: Workspace) -> None:
    num_documents, num_val = 0, 0
    for index, text in enumerate(documents(spec.corpus, manifest, work.hashes)):
        num_documents += 1
        num_val += bool(text.replace("\0", "").strip()) and split_of(spec.split, index, text) == "val"
    refuse_empty_split(spec.split, num_documents, 0, num_val)


def _counts(sums: SplitSums, zstd_bytes: int | None = None, xz_bytes: int | None = None) -> SplitCounts:
    return SplitCounts(**sums.model_dump(), zstd_bytes=zstd_bytes, xz_bytes=xz_bytes)


def _val_counts(sums: SplitSums, texts: list[BinaryIO], with_compressors: bool) -> SplitCounts:
    if not with_compressors:
        return _counts(sums)
    zstd_bytes = zstd_size(_from_start(texts), sums.utf8_bytes)
    return _counts(sums, zstd_bytes, xz_size(_from_start(texts)))


def _from_start(texts: list[BinaryIO]) -> Iterable[bytes]:
    for text in texts:
        text.seek(0)
    return pieces(texts)


def _ignore_written(split: str, index: int, ids: np.ndarray) -> None:
    """Splits by hash need no look: equal texts have equal hashes."""


class _HeldOut:
    """Names the files of the validation split where these are few and each is a document."""

    def __init__(self) -> None:
        self._numbers: list[int] = []

    def add(self, split: str, index: int) -> None:
        if split == "val" and len(self._numbers) <= _NAMED_FILES:
            self._numbers.append(index)

    def in_words(self, spec: TokenizeSpec, manifest: CorpusManifest) -> str:
        """` (held out: d.txt)`, or an empty text."""
        document_each = isinstance(spec.corpus, FilesCorpus) and set(manifest.formats) == {"txt"}
        if not document_each or not 0 < len(self._numbers) <= _NAMED_FILES:
            return ""
        names = (one_line(Path(manifest.files[number].path).name) for number in self._numbers)
        return f" (held out: {', '.join(names)})"


class _CopyDetector:
    """Finds a document of the validation split among the training documents: same ids, so same normalised
    text.
    """

    def __init__(self) -> None:
        self._val: dict[bytes, int] = {}

    def __call__(self, split: str, index: int, ids: np.ndarray) -> None:
        digest = hashlib.sha256(ids.tobytes()).digest()[:16]
        if split == "val":
            self._val.setdefault(digest, index)
        elif (copy := self._val.get(digest)) is not None:
            raise StageError(
                f"document {index:,} of the training split has the same text as document {copy:,} of the "
                "validation split (counted from 0). Remove one of them, or use "
                "tokenize.split.kind=hash_fraction, which keeps equal documents together"
            )


def _num_threads(manifest: CorpusManifest, work: Workspace) -> int:
    if sum(file.num_bytes for file in manifest.files) < _SHARED_FROM_BYTES:
        return 1
    return work.runtime.encode_threads or default_threads()
