"""Corpus of kind `shards`: ready-made Parameter Golf shards and their tokenizer, verified and not copied."""

import hashlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from schemas.errors import SpecError, StageError
from schemas.tokenize_corpus import CorpusManifest, ShardsCorpus, SplitCounts, TokenizedCorpus
from stages.core.shards import BOS_ID, ShardError, open_shard
from stages.corpora.sources import OnRead, ready_made_tokenizer, source_file, unchanged
from stages.store.hashing import FileHashes

log = logging.getLogger(__name__)

# Web text has some exact copies that a ready-made split cannot be blamed for; whole shards in common are
# another matter.
SHARED_DOCUMENTS_ALLOWED = 0.01

_NAME = re.compile(r"fineweb_(train|val)_(\d{6})\.bin")
_CHUNK_TOKENS = 8_000_000


def locate(corpus: ShardsCorpus, model_path: str | None, hashes: FileHashes) -> CorpusManifest:
    """Training shards, then validation shards, each by number, and the tokenizer.

    Raises SpecError if some are missing.
    """
    if model_path is not None:
        raise SpecError(
            f"tokenize.tokenizer.model_path = {model_path}: shards have their own tokenizer. Set "
            "tokenize.corpus.tokenizer_model instead"
        )
    if not corpus.tokenizer_model:
        raise SpecError(
            "tokenize.corpus.tokenizer_model = '': give the SentencePiece .model that the shards were made "
            "with"
        )
    folder = Path(corpus.folder).expanduser().absolute()
    if not corpus.folder or not folder.is_dir():
        raise SpecError(
            f"tokenize.corpus.folder = {corpus.folder!r}: is not a folder. Give the one with "
            "fineweb_train_*.bin and fineweb_val_*.bin"
        )
    splits: dict[str, list[Path]] = {"train": [], "val": []}
    for path in sorted(folder.iterdir()):
        if match := _NAME.fullmatch(path.name):
            splits[match[1]].append(path)
    for split, paths in splits.items():
        if not paths:
            raise SpecError(
                f"tokenize.corpus.folder = {corpus.folder}: has no fineweb_{split}_*.bin. Both splits must "
                "be there"
            )
    _refuse_holes(splits["val"])
    model = source_file(corpus.tokenizer_model, hashes, "tokenize.corpus.tokenizer_model")
    # Before the shards are hashed, which takes long.
    ready_made_tokenizer(Path(model.path), "tokenize.corpus.tokenizer_model")
    files = splits["train"] + splits["val"]
    return CorpusManifest(
        source=(
            f"{len(splits['train'])} training and {len(splits['val'])} validation shards in {corpus.folder}"
        ),
        files=tuple(source_file(path, hashes, "tokenize.corpus.folder") for path in files),
        formats=(),
        tokenizer_model=model,
    )


def verify(manifest: CorpusManifest, hashes: FileHashes, on_read: OnRead) -> TokenizedCorpus:
    """The shards of the manifest as a corpus, after a check of every token.

    Raises SpecError for a file that is no tokenizer or a BOS other than 1. Raises StageError for a changed
    file, a wrong header or size, an id outside the vocabulary, a split without BOS, and splits that share
    documents. A few shared documents (at most 1 % of validation) are logged.
    """
    assert manifest.tokenizer_model is not None
    with unchanged(manifest.tokenizer_model, hashes) as model_path:
        tokenizer = ready_made_tokenizer(model_path, "tokenize.corpus.tokenizer_model")
    vocab_size = tokenizer.vocab_size()
    shards = {
        split: [file for file in manifest.files if f"_{split}_" in Path(file.path).name]
        for split in ("train", "val")
    }
    counts: dict[str, SplitCounts] = {}
    val_digests: set[bytes] | None = None
    for split in ("val", "train"):
        documents = _Documents(known=val_digests)
        for file in shards[split]:
            with unchanged(file, hashes) as path:
                for chunk in _chunks(path, vocab_size):
                    documents.add(chunk)
                    on_read(2 * chunk.size)
        documents.finish()
        if documents.num_bos == 0:
            raise StageError(
                f"the {split} shards hold no BOS (id {BOS_ID}): they were made with another "
                "tokenizer or in another format"
            )
        counts[split] = SplitCounts(
            num_documents=documents.num_bos,
            num_tokens=documents.num_tokens,
            num_bos=documents.num_bos,
            utf8_bytes=None,
            normalized_utf8_bytes=None,
        )
        val_digests = documents.digests if split == "val" else val_digests
        _judge_shared(documents.num_shared, counts["val"].num_documents)
    return TokenizedCorpus(
        tokenizer=manifest.tokenizer_model,
        tokenizer_sha256=manifest.tokenizer_model.sha256,
        vocab_size=vocab_size,
        bos_id=BOS_ID,
        train_shards=tuple(shards["train"]),
        val_shards=tuple(shards["val"]),
        train=counts["train"],
        val=counts["val"],
    )


class _Documents:
    """Counts a split's tokens and documents and finds those that `known` already has; memory is that of one
    chunk.
    """

    def __init__(self, known: set[bytes] | None) -> None:
        self.num_tokens = self.num_bos = self.num_shared = 0
        self.digests: set[bytes] = set()
        self._known = known
        self._open = hashlib.sha256()
        self._open_tokens = 0

    def add(self, tokens: np.ndarray) -> None:
        """Add tokens (n,) uint16 after those of earlier calls; a document may continue from one call to the
        next.
        """
        starts = np.flatnonzero(tokens == BOS_ID)
        self.num_tokens += tokens.size
        self.num_bos += starts.size
        first, *others = np.split(tokens, starts)
        self._continue(first)
        for document in others:
            self.finish()
            self._continue(document)

    def finish(self) -> None:
        """End the current document."""
        if self._open_tokens > 1:
            digest = self._open.digest()[:16]
            if self._known is None:
                self.digests.add(digest)
            elif digest in self._known:
                self.num_shared += 1
        self._open, self._open_tokens = hashlib.sha256(), 0

    def _continue(self, tokens: np.ndarray) -> None:
        self._open.update(tokens.tobytes())
        self._open_tokens += tokens.size


def _chunks(path: Path, vocab_size: int) -> Iterator[np.ndarray]:
    try:
        tokens = open_shard(path)
    except ShardError as error:
        raise StageError(f"{error}. Fetch or write the shard again") from error
    for start in range(0, len(tokens), _CHUNK_TOKENS):
        chunk = np.asarray(tokens[start : start + _CHUNK_TOKENS])
        largest = int(chunk.max())
        if largest >= vocab_size:
            position = start + int(chunk.argmax())
            raise StageError(
                f"{path}: token {position:,} is {largest}, the tokenizer has {vocab_size} pieces. "
                "Give their tokenizer"
            )
        yield chunk


def _judge_shared(num_shared: int, num_val_documents: int) -> None:
    if num_shared > SHARED_DOCUMENTS_ALLOWED * num_val_documents:
        raise StageError(
            f"{num_shared:,} training documents are also in the validation split of {num_val_documents:,}: "
            "the splits overlap. Use shards of an export without overlap"
        )
    if num_shared:
        log.warning(
            "%d training documents are also among the %d of the validation split",
            num_shared,
            num_val_documents,
        )


def _refuse_holes(paths: list[Path]) -> None:
    for expected, path in enumerate(paths):
        if path.name != f"fineweb_val_{expected:06d}.bin":
            raise SpecError(
                f"tokenize.corpus.folder = {path.parent}: fineweb_val_{expected:06d}.bin is missing before "
                f"{path.name}. Fetch it again"
            )
