"""The text that a tokenizer is trained on, and the tokenizer made from it."""

import hashlib
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from schemas.tokenize_corpus import Corpus, CorpusManifest, Split, TokenizerSpec, TokenizeSpec
from schemas.tokenize_parts import TrainingText
from stages.corpora import documents
from stages.corpora.sources import unchanged
from stages.store.hashing import FileHashes
from stages.tokenization.splits import split_of
from stages.tokenization.tokenizer import check_tokenizer, sentences, train_tokenizer

log = logging.getLogger(__name__)


def training_text(spec: TokenizeSpec, manifest: CorpusManifest, hashes: FileHashes) -> TrainingText | None:
    """What the corpus's tokenizer is made from; None if there is no line to train it on.

    The text is read once, up to `spec.tokenizer.training_bytes`; memory stays that of a document. Raises as
    `stages.corpora.documents`.
    """
    if (model := manifest.tokenizer_model) is not None:
        digest, num_bytes = model.sha256, model.num_bytes
    else:
        lines, num_bytes = hashlib.sha256(), 0
        texts = _training_documents(spec.corpus, manifest, spec.split, hashes)
        for sentence in sentences(texts, spec.tokenizer.training_bytes):
            data = sentence.encode()
            lines.update(data + b"\n")
            num_bytes += len(data)
        digest = lines.hexdigest()
    if not num_bytes:
        return None
    return TrainingText(
        sha256=digest, num_bytes=num_bytes, corpus=spec.corpus, split=spec.split, manifest=manifest
    )


def write_tokenizer(
    spec: TokenizerSpec,
    corpus: Corpus,
    split: Split,
    manifest: CorpusManifest,
    hashes: FileHashes,
    path: Path,
) -> None:
    """Make the tokenizer the file `path`: trained on the training documents, or the manifest's model.

    Raises NoTrainingTextError for text without a line, SpecError for a vocabulary or model that does not fit.
    """
    if manifest.tokenizer_model is not None:
        with unchanged(manifest.tokenizer_model, hashes) as ready_made:
            check_tokenizer(ready_made, spec)
            shutil.copyfile(ready_made, path)
        return
    started = time.perf_counter()
    path.write_bytes(train_tokenizer(spec, _training_documents(corpus, manifest, split, hashes)))
    log.info("trained a tokenizer of %d pieces in %.1f s", spec.vocab_size, time.perf_counter() - started)


def _training_documents(
    corpus: Corpus, manifest: CorpusManifest, split: Split, hashes: FileHashes
) -> Iterator[str]:
    texts = documents(corpus, manifest, hashes)
    return (text for index, text in enumerate(texts) if split_of(split, index, text) == "train")
