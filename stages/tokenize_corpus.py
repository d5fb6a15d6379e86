"""Text to token shards: train or take a SentencePiece model, split the documents, encode them, count
everything.

    python -m stages tokenize_corpus --spec spec.json

CorpusManifest -> TokenizedCorpus. The corpus is streamed twice, once for the tokenizer and once for the
shards; memory does not grow with it. Ready-made shards are verified and used where they lie.
"""

import hashlib
import logging
import shutil
import tempfile
import time
from pathlib import Path
from typing import BinaryIO

import numpy as np

from schemas.errors import StageError
from schemas.tokenize_corpus import (
    CorpusManifest,
    FirstDocuments,
    ShardsCorpus,
    SplitCounts,
    TokenizedCorpus,
    TokenizeSpec,
)
from stages.core.bits_per_byte import load_token_bytes
from stages.core.shards import BOS_ID
from stages.corpora import documents, shards
from stages.corpora.sources import unchanged
from stages.store.workspace import Workspace
from stages.tokenization.fast_encode import TextEncoder, default_threads, encode_stream
from stages.tokenization.split_writer import SplitWriter, xz_size, zstd_size
from stages.tokenization.splits import refuse_empty_split, split_of
from stages.tokenization.tokenizer import NoTrainingTextError, check_tokenizer, train_tokenizer

log = logging.getLogger(__name__)

# Each thread learns the words anew, which does not pay for less.
_SHARED_FROM_BYTES = 50_000_000
_REPORT_SECONDS = 0.5


def tokenize_corpus(spec: TokenizeSpec, manifest: CorpusManifest, work: Workspace) -> TokenizedCorpus:
    """Shards of both splits, their tokenizer and their counts.

    Raises SpecError for a corpus, split or vocabulary that cannot be used, with the field and the remedy, and
    StageError for the same document in both splits, a bad ready-made shard, or a file that changed since it
    was hashed.
    """
    if isinstance(spec.corpus, ShardsCorpus):
        return shards.verify(manifest, work.hashes, _Progress(manifest, work))
    model_path = work.out_dir / "tokenizer.model"
    _make_tokenizer(spec, manifest, work, model_path)
    # Unnamed, so that nothing of it is left among the results.
    with tempfile.TemporaryFile(dir=work.out_dir) as val_text:
        train, val, normalized_bytes = _write_splits(spec, manifest, work, model_path, val_text)
        val_counts = _val_counts(val, normalized_bytes, val_text, spec.compressor_baselines)
    log.info(
        "%s: %s training and %s validation documents",
        manifest.source,
        f"{train.num_documents:,}",
        f"{val.num_documents:,}",
    )
    tokenizer = work.ref(model_path)
    return TokenizedCorpus(
        tokenizer=tokenizer,
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=spec.tokenizer.vocab_size,
        bos_id=BOS_ID,
        train_shards=tuple(work.ref(path) for path in train.paths),
        val_shards=tuple(work.ref(path) for path in val.paths),
        train=train.counts(),
        val=val_counts,
    )


def _make_tokenizer(spec: TokenizeSpec, manifest: CorpusManifest, work: Workspace, model_path: Path) -> None:
    if manifest.tokenizer_model is not None:
        with unchanged(manifest.tokenizer_model, work.hashes) as ready_made:
            check_tokenizer(ready_made, spec.tokenizer)
            shutil.copyfile(ready_made, model_path)
        return
    texts = documents(spec.corpus, manifest, work.hashes)
    training_texts = (
        text for index, text in enumerate(texts) if split_of(spec.split, index, text) == "train"
    )
    started = time.perf_counter()
    try:
        model_path.write_bytes(train_tokenizer(spec.tokenizer, training_texts))
    except NoTrainingTextError:
        _explain_no_training_text(spec, manifest, work)
        raise
    log.info(
        "trained a tokenizer of %d pieces in %.1f s", spec.tokenizer.vocab_size, time.perf_counter() - started
    )


def _explain_no_training_text(spec: TokenizeSpec, manifest: CorpusManifest, work: Workspace) -> None:
    num_documents, num_val = 0, 0
    for index, text in enumerate(documents(spec.corpus, manifest, work.hashes)):
        num_documents += 1
        num_val += bool(text.replace("\0", "").strip()) and split_of(spec.split, index, text) == "val"
    refuse_empty_split(spec.split, num_documents, 0, num_val)


def _write_splits(
    spec: TokenizeSpec, manifest: CorpusManifest, work: Workspace, model_path: Path, val_text: BinaryIO
) -> tuple[SplitWriter, SplitWriter, int]:
    """Both splits, closed, and the bytes of the normalised validation text."""
    model = model_path.read_bytes()
    encoder = TextEncoder(model)
    table = load_token_bytes(model_path)
    texts = documents(spec.corpus, manifest, work.hashes, _Progress(manifest, work))
    copies = _CopyDetector() if isinstance(spec.split, FirstDocuments) else None
    normalized_bytes = 0
    with (
        SplitWriter(work.out_dir, "train", spec.shard_tokens, table) as train,
        SplitWriter(work.out_dir, "val", spec.shard_tokens, table, val_text) as val,
    ):
        for index, (text, ids) in enumerate(encode_stream(texts, model, _num_threads(manifest, work))):
            split = split_of(spec.split, index, text)
            written = (val if split == "val" else train).add(text, ids)
            if written and split == "val":
                normalized_bytes += encoder.normalized_size(text)
            if written and copies is not None:
                copies.check(split, index, ids)
        num_documents = train.num_documents + train.num_empty + val.num_documents + val.num_empty
        refuse_empty_split(spec.split, num_documents, train.num_documents, val.num_documents)
    return train, val, normalized_bytes


def _val_counts(
    val: SplitWriter, normalized_bytes: int, text: BinaryIO, with_compressors: bool
) -> SplitCounts:
    if not with_compressors:
        return val.counts(normalized_bytes)
    num_bytes = text.tell()
    return val.counts(normalized_bytes, zstd_size(text, num_bytes), xz_size(text))


class _CopyDetector:
    """Finds a document of the validation split among the training documents: same ids, so same normalised
    text.

    Splits by hash need none of it: equal texts have equal hashes.
    """

    def __init__(self) -> None:
        self._val: dict[bytes, int] = {}

    def check(self, split: str, index: int, ids: np.ndarray) -> None:
        digest = hashlib.sha256(ids.tobytes()).digest()[:16]
        if split == "val":
            self._val.setdefault(digest, index)
        elif (copy := self._val.get(digest)) is not None:
            raise StageError(
                f"document {index:,} of the training split has the same text as document {copy:,} of the "
                "validation split (counted from 0). Remove one of them, or use split.kind = hash_fraction, "
                "which keeps equal documents together"
            )


class _Progress:
    """Passes the bytes read on to the workspace, a few times a second."""

    def __init__(self, manifest: CorpusManifest, work: Workspace) -> None:
        self._work, self._done, self._reported_at = work, 0, 0.0
        self._total = sum(file.num_bytes for file in manifest.files)

    def __call__(self, num_bytes: int) -> None:
        self._done += num_bytes
        now = time.monotonic()
        if now - self._reported_at >= _REPORT_SECONDS or self._done >= self._total:
            self._reported_at = now
            self._work.report_progress(min(self._done, self._total), self._total, "bytes")


def _num_threads(manifest: CorpusManifest, work: Workspace) -> int:
    if sum(file.num_bytes for file in manifest.files) < _SHARED_FROM_BYTES:
        return 1
    return work.runtime.encode_threads or default_threads()
