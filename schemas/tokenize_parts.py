"""Tokenization in parts: the tokenizer, a few files as shards without borders, and what is put together.

Parts change no result: `TokenizedCorpus` and its key are those of a corpus that one process tokenized whole.
"""

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from schemas.base import Schema, Volatile
from schemas.files import FileRef, Sha256
from schemas.tokenize_corpus import (
    Corpus,
    CorpusManifest,
    HashFraction,
    Split,
    without_places,
)


class TrainingText(Schema):
    """What a tokenizer is made from: lines of the training documents, known by their digest, or a model.

    A further file behind the first `training_bytes` of text changes nothing here.
    """

    sha256: Sha256 = Field(description="of the lines, or of the SentencePiece model that is reused")
    num_bytes: PositiveInt
    corpus: Volatile[Corpus]
    split: Volatile[Split]
    manifest: Volatile[CorpusManifest]


class TokenizerModel(Schema):
    """A SentencePiece model in the store."""

    model: FileRef


class PartSpec(Schema):
    """How the documents of a part are read and split. `keep_val_text`: for the general compressors."""

    corpus: Corpus
    split: HashFraction
    keep_val_text: bool

    def keyed(self) -> "PartSpec":
        return self.derive(corpus=without_places(self.corpus))


class CorpusPart(CorpusManifest):
    """A few neighbouring files of a corpus, known by their content alone."""

    revision: Volatile[str | None] = None


class SplitSums(Schema):
    """What is counted in one split of a part; the sums over all parts are the counts of the corpus."""

    num_documents: NonNegativeInt
    num_empty_documents_skipped: NonNegativeInt
    num_tokens: NonNegativeInt = Field(description="BOS included")
    num_bos: NonNegativeInt
    utf8_bytes: NonNegativeInt
    normalized_utf8_bytes: NonNegativeInt


class PartSplit(Schema):
    """One split of a part: its tokens as one stream of uint16, little-endian, without a header."""

    tokens: FileRef
    sums: SplitSums


class TokenizedPart(Schema):
    """The tokens of a part; `files` and `tokenizer_sha256` say of what and by what."""

    files: tuple[Sha256, ...]
    tokenizer_sha256: Sha256
    train: PartSplit
    val: PartSplit
    val_text: FileRef | None = Field(description="the validation documents, one behind the other")


class TokenizedParts(Schema):
    """All parts of a corpus in order, for the stage that puts them together."""

    tokenizer: TokenizerModel
    parts: tuple[TokenizedPart, ...]
    seconds: NonNegativeFloat = Field(description="what one machine spends on them, about")
