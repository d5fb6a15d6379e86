"""Tokenized parts as the shards of the whole corpus: their streams of tokens, one behind the other, cut anew.

A document may cross the border of a shard, so only what knows all parts can cut.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import BinaryIO

from schemas.tokenize_corpus import CorpusManifest
from schemas.tokenize_parts import PartSplit, SplitSums, TokenizedPart, TokenizedParts
from stages.core.shards import ShardWriter
from stages.store.workspace import Workspace
from stages.tokenization.token_file import read_tokens


def check_parts(parts: TokenizedParts, manifest: CorpusManifest) -> None:
    """Raise ValueError unless the parts are those of the corpus, in its order, by one tokenizer."""
    files = [digest for part in parts.parts for digest in part.files]
    tokenizers = {part.tokenizer_sha256 for part in parts.parts}
    if files != [file.sha256 for file in manifest.files] or tokenizers != {parts.tokenizer.model.sha256}:
        raise ValueError("parts: they are not those of this corpus")


def assemble(splits: Sequence[PartSplit], shards: ShardWriter, work: Workspace) -> SplitSums:
    """Write one split of all parts in order, close the shards, and give the sums over the parts.

    Memory stays flat. Raises DamagedFileError for a part whose file is not on this machine.
    """
    total = sum(split.sums.num_tokens for split in splits)
    with shards:
        for split in splits:
            for tokens in read_tokens(work.read(split.tokens)):
                shards.write(tokens)
                work.report_progress(shards.num_tokens, total, "tokens put together")
    names = SplitSums.model_fields
    return SplitSums(**{name: sum(getattr(split.sums, name) for split in splits) for name in names})


def open_val_texts(parts: Sequence[TokenizedPart], work: Workspace, stack: ExitStack) -> list[BinaryIO]:
    """The validation documents of each part as files, which `stack` closes."""
    refs = [part.val_text for part in parts if part.val_text is not None]
    return [stack.enter_context(work.read(ref).open("rb")) for ref in refs]
