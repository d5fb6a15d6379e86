"""Survey of a small corpus before it is tokenized: its documents by split, the vocabulary that its text can
carry, and the tokens of both splits.

CorpusManifest -> SmallText. Text that is too small is then refused before any stage runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import sentencepiece

from schemas.errors import SpecError
from schemas.tokenize_corpus import (
    CorpusManifest,
    FilesCorpus,
    FirstDocuments,
    Split,
    TokenizerSpec,
    TokenizeSpec,
)
from stages.corpora import documents
from stages.tokenization.splits import refuse_empty_split, split_of
from stages.tokenization.tokenizer import NoTrainingTextError, VocabularyTooLargeError, train_tokenizer

READ_BYTES = 8_000_000
"""Text up to this size is read before it is tokenized. More is enough for both splits."""

# A text of so many bytes for each piece carries the vocabulary. Of addresses to Congress, 2 kB carry 1,683
# pieces and 100 kB carry 11,102.
_PLENTY_BYTES_PER_PIECE = 100
# Below so many bytes for each token that is needed, tokens are counted.
_PLENTY_BYTES_PER_TOKEN = 16


@dataclass(frozen=True)
class SmallText:
    """The texts of a corpus in order, the empty ones included."""

    texts: tuple[str, ...]

    @property
    def sizes(self) -> list[int]:
        """Bytes of each text; 0 for an empty one."""
        return [len(text.encode()) if _has_text(text) else 0 for text in self.texts]

    def of(self, split: Split) -> tuple[list[str], list[str]]:
        """The training texts and the validation texts; those without text are left out."""
        parts: dict[str, list[str]] = {"train": [], "val": []}
        for index, text in enumerate(self.texts):
            if _has_text(text):
                parts[split_of(split, index, text)].append(text)
        return parts["train"], parts["val"]


def read_small_text(spec: TokenizeSpec, manifest: CorpusManifest) -> SmallText | None:
    """The texts of a corpus of files; None if it is no such corpus, or has more than READ_BYTES of text.

    Raises SpecError for unusable text.
    """
    size = sum(file.num_bytes for file in manifest.files)
    if not isinstance(spec.corpus, FilesCorpus) or size > READ_BYTES:
        return None
    texts, taken = [], 0
    for text in documents(spec.corpus, manifest):
        taken += len(text)
        if taken > READ_BYTES:  # compressed files hold more than their size
            return None
        texts.append(text)
    return SmallText(tuple(texts))


def carried_vocabulary(spec: TokenizerSpec, training_texts: Sequence[str]) -> int:
    """The size of the vocabulary, lowered to what the texts can carry; as it is where they carry it, or where
    something else is wrong with it.
    """
    if _num_bytes(training_texts) >= spec.vocab_size * _PLENTY_BYTES_PER_PIECE:
        return spec.vocab_size
    try:
        train_tokenizer(spec, training_texts)
    except VocabularyTooLargeError as error:
        return error.most
    except (SpecError, NoTrainingTextError):  # tokenization says what is wrong
        pass
    return spec.vocab_size


def refuse_small_text(spec: TokenizeSpec, text: SmallText, sequence_tokens: int) -> None:
    """Raise SpecError if a split of the text has fewer tokens than a sequence of `sequence_tokens` and its
    next token, with the bytes that are enough; or if the vocabulary is too large for it.
    """
    train, val = text.of(spec.split)
    if len(train) + len(val) == 1:
        _refuse_one_document(len(text.texts) - 1)
    refuse_empty_split(spec.split, len(text.texts), len(train), len(val))
    needed = sequence_tokens + 1
    parts = {"training": train, "validation": val}
    short = {
        name: texts for name, texts in parts.items() if _num_bytes(texts) < needed * _PLENTY_BYTES_PER_TOKEN
    }
    few = _num_bytes(train) < spec.tokenizer.vocab_size * _PLENTY_BYTES_PER_PIECE
    if not (short or few) or spec.tokenizer.model_path is not None:
        return
    tokenizer = _trained(spec.tokenizer, train)
    for name, texts in short.items():
        count = sum(len(ids) + 1 for ids in tokenizer.encode(texts))  # BOS begins each document
        if count < needed:
            num_bytes = _num_bytes(texts)
            enough = -(-needed * num_bytes // count)
            raise SpecError(
                f"tokenize.corpus.paths: the text is too small: its {name} split has {num_bytes:,} bytes, "
                f"{count:,} tokens, and a sequence needs {needed:,}. About {enough:,} bytes are the smallest "
                f"size that works. Give more text{_or_other_split(spec.split, name)}, or set "
                f"train.data.sequence_length to at most {count - 1}"
            )


def _refuse_one_document(num_empty: int) -> None:
    empty = f" ({num_empty:,} more without text)" if num_empty else ""
    raise SpecError(
        f"tokenize.corpus.paths: the text is one document{empty}, and a validation split needs a second one. "
        "Cut it into several files, for example: split -n l/20 --additional-suffix=.txt book.txt part-"
    )


def _or_other_split(split: Split, name: str) -> str:
    if isinstance(split, FirstDocuments) and name == "validation":
        return f", raise tokenize.split.num_val_documents = {split.num_val_documents}"
    return ""


def _trained(spec: TokenizerSpec, texts: Sequence[str]) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=train_tokenizer(spec, texts))


def _has_text(text: str) -> bool:
    return bool(text.replace("\0", "").strip())


def _num_bytes(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)
