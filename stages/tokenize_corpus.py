"""Text to token shards: train or take a SentencePiece model, split the documents, encode them, count everything.

    python -m stages.tokenize_corpus --spec spec.json

CorpusManifest -> TokenizedCorpus. The corpus is streamed twice, once for the tokenizer and once for the shards; memory
does not grow with it. Ready-made shards are verified and used where they lie.
"""

import hashlib
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import sentencepiece

from schemas.errors import StageError
from schemas.tokenize_corpus import CorpusManifest, FirstDocuments, ShardsCorpus, TokenizedCorpus, TokenizeSpec
from stages.core.bits_per_byte import SPACE_SYMBOL, load_token_bytes
from stages.corpora import documents, shards
from stages.corpora.sources import unchanged
from stages.encode_stream import available_processes, encode_stream
from stages.split_writer import SplitWriter, xz_size, zstd_size
from stages.splits import refuse_empty_split, split_of
from stages.train_tokenizer import BOS_ID, NoTrainingTextError, check_tokenizer, train_tokenizer
from stages.workspace import Workspace

log = logging.getLogger(__name__)

# Below this, starting helper processes takes longer than they save.
_SHARED_FROM_BYTES = 50_000_000
_REPORT_SECONDS = 0.5


def tokenize_corpus(spec: TokenizeSpec, manifest: CorpusManifest, work: Workspace) -> TokenizedCorpus:
    """Shards of both splits, their tokenizer and their counts.

    Raises SpecError for a corpus, split or vocabulary that cannot be used, with the field and the remedy, and StageError
    for the same document in both splits, a bad ready-made shard, or a file that changed since it was hashed.
    """
    if isinstance(spec.corpus, ShardsCorpus):
        return shards.verify(manifest, work.hashes, _Progress(manifest, work))
    model_path = work.out_dir / "tokenizer.model"
    _make_tokenizer(spec, manifest, work, model_path)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(model_path))
    table = load_token_bytes(model_path)
    normalized_bytes = 0
    val_documents = _ValidationDocuments(spec)
    texts = documents(spec.corpus, manifest, work.hashes, _Progress(manifest, work))
    with ExitStack() as stack:
        # Unnamed, so that nothing of it is left in the result.
        text_file = stack.enter_context(tempfile.TemporaryFile(dir=work.out_dir))
        train = stack.enter_context(SplitWriter(work.out_dir, "train", spec.shard_tokens, table))
        val = stack.enter_context(SplitWriter(work.out_dir, "val", spec.shard_tokens, table, text_file))
        for index, (text, ids) in enumerate(encode_stream(texts, model_path, _num_processes(manifest))):
            split = split_of(spec.split, index, text)
            if split == "val":
                if val.add(text, ids):
                    normalized_bytes += normalized_size(tokenizer, text)
                    val_documents.add(index, ids)
            elif train.add(text, ids):
                val_documents.refuse_copy(index, ids)
        num_documents = train.num_documents + train.num_empty + val.num_documents + val.num_empty
        refuse_empty_split(spec.split, num_documents, train.num_documents, val.num_documents)
...
