"""Tokenization: corpus, tokenizer and split in; shards of uint16 tokens, a SentencePiece model and counts
out.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from schemas.base import Schema, Volatile
from schemas.files import FileRef, Sha256, SourceFile

TextFormat = Literal["txt", "jsonl", "parquet"]


class SotuCorpus(Schema):
    """The embedded corpus: State of the Union addresses, one document each, in the order of their dates."""

    kind: Literal["sotu"] = "sotu"
    max_documents: PositiveInt | None = Field(
        None, description="use only the first so many addresses; empty: all"
    )


class FilesCorpus(Schema):
    """Text, JSON or Parquet files on this machine, also compressed.

    A text file is one document; an object or a row is one otherwise.
    """

    kind: Literal["files"] = "files"
    paths: tuple[str, ...] = Field(
        (), description="files or globs (** crosses folders), read in sorted order"
    )
    format: Literal["auto", "txt", "jsonl", "parquet"] = Field(
        "auto", description="auto: by content and file ending"
    )
    text_column: str = Field(
        "text",
        description="column or key that holds the text (jsonl, parquet); meta.text: the text inside meta",
        min_length=1,
    )


class ShardsCorpus(Schema):
    """Ready-made parameter-golf shards and their tokenizer: verified, used where they lie, not copied."""

    kind: Literal["shards"] = "shards"
    folder: str = Field("", description="folder with fineweb_train_*.bin and fineweb_val_*.bin")
    tokenizer_model: str = Field("", description="SentencePiece .model that the shards were made with")


class HuggingFaceCorpus(Schema):
    """A dataset repository on the Hugging Face hub: its Parquet or JSON-lines files of one split."""

    kind: Literal["huggingface"] = "huggingface"
    dataset: str = Field("", description="repository id, for example HuggingFaceFW/fineweb")
    split: str = Field(
        "train", description="split whose files are read (part of their name or folder)", min_length=1
    )
    folder: str = Field(
        "",
        description=(
            "read only files under this folder of the repository, for example sample/10BT; empty: all"
        ),
    )
    revision: str = Field(
        "main",
        description="branch, tag or commit; it is resolved to a commit before the key is made",
        min_length=1,
    )
    text_column: str = Field("text", description="column or key that holds the text", min_length=1)


Corpus = Annotated[SotuCorpus | FilesCorpus | ShardsCorpus | HuggingFaceCorpus, Field(discriminator="kind")]


_PLACES: dict[str, dict[str, Any]] = {
    "sotu": {"max_documents": None},
    "files": {"paths": (), "format": "auto"},
    "shards": {"folder": "", "tokenizer_model": ""},
    "huggingface": {"dataset": "", "split": "train", "folder": "", "revision": "main"},
}


def without_places(corpus: Corpus) -> Corpus:
    """The corpus without what only says where its files are; a manifest has their content."""
    found: Corpus = corpus.derive(**_PLACES[corpus.kind])
    return found


class TokenizerSpec(Schema):
    """A SentencePiece BPE model: trained on the training documents, or reused from a file."""

    vocab_size: int = Field(1024, ge=260, le=65_536, description="pieces; ids must fit in uint16")
    model_path: str | None = Field(None, description="reuse this SentencePiece model instead of training one")
    character_coverage: float = Field(
        0.999, gt=0, le=1, description="share of characters that get a piece; the rest fall back to bytes"
    )
    training_bytes: PositiveInt = Field(
        100_000_000, description="text that the tokenizer is trained on at most"
    )


class FirstDocuments(Schema):
    """Validation is the first N documents, as in the official export."""

    kind: Literal["first_documents"] = "first_documents"
    num_val_documents: PositiveInt = Field(
        50_000, description="documents at the start that make the validation split"
    )


class HashFraction(Schema):
    """A document is in the validation split by the hash of its text, so equal documents stay together."""

    kind: Literal["hash_fraction"] = "hash_fraction"
    val_fraction: float = Field(
        0.05, gt=0, lt=1, description="expected share of documents in the validation split"
    )


Split = Annotated[FirstDocuments | HashFraction, Field(discriminator="kind")]


class TokenizeSpec(Schema):
    corpus: Corpus = Field(default_factory=SotuCorpus, description="where the text comes from")
    tokenizer: TokenizerSpec = Field(default_factory=TokenizerSpec, description="SentencePiece model")
    split: Split = Field(default_factory=lambda: HashFraction(), description="which documents are held out")
    shard_tokens: int = Field(100_000_000, ge=1, le=100_000_000, description="tokens in a shard at most")
    compressor_baselines: bool = Field(
        True, description="also compress the validation text with zstd -22 and xz -9, for comparison"
    )

    def keyed(self) -> "TokenizeSpec":
        """Without the places of files: the manifest has their content, order and format, however their
        paths are spelt.
        """
        corpus = without_places(self.corpus)
        return self.derive(corpus=corpus, tokenizer=self.tokenizer.derive(model_path=None))


class CorpusManifest(Schema):
    """The corpus pinned down before the key is made: each file with its sha256, in the order it is read."""

    source: Volatile[str] = Field(description="the corpus in words")
    files: tuple[SourceFile, ...]
    formats: tuple[TextFormat, ...] = Field(description="how each file is read; none for shards")
    revision: str | None = Field(None, description="resolved commit (huggingface) or package version (sotu)")
    tokenizer_model: SourceFile | None = Field(
        None, description="the SentencePiece model that is reused; None: one is trained"
    )
    num_hidden_files: Volatile[NonNegativeInt] = Field(
        0, description="files that match but for the dot that their names begin with"
    )


class SplitCounts(Schema):
    """One split, counted while it was written."""

    num_documents: NonNegativeInt = Field(
        description="documents written; in ready-made shards each BOS begins one"
    )
    num_empty_documents_skipped: NonNegativeInt = 0
    num_tokens: PositiveInt = Field(description="BOS included")
    num_bos: NonNegativeInt
    utf8_bytes: NonNegativeInt | None = Field(
        description="of the text as it came; None for ready-made shards"
    )
    normalized_utf8_bytes: NonNegativeInt | None = Field(
        description="of the text after the tokenizer's normalisation"
    )
    zstd_bytes: PositiveInt | None = Field(None, description="validation text under zstd -22")
    xz_bytes: PositiveInt | None = Field(None, description="validation text under xz -9")


class TokenizedCorpus(Schema):
    """Shards in the official format, their tokenizer, and what was counted."""

    tokenizer: FileRef | SourceFile
    tokenizer_sha256: Sha256
    vocab_size: PositiveInt
    bos_id: Literal[1] = Field(description="the only one that models and scores know")
    train_shards: tuple[FileRef | SourceFile, ...]
    val_shards: tuple[FileRef | SourceFile, ...]
    train: SplitCounts
    val: SplitCounts
