"""Splits: whether a document is for training or validation, by its position or its text alone."""

import hashlib
from typing import Literal

from schemas.errors import SpecError
from schemas.tokenize_corpus import FirstDocuments, Split

SplitName = Literal["train", "val"]


def split_of(split: Split, index: int, text: str) -> SplitName:
    """Split of document `index` (from 0, empty documents counted).

    By hash, a document is for validation if the first 8 bytes of its sha256, as a fraction, are below
    `val_fraction`.
    """
    if isinstance(split, FirstDocuments):
        return "val" if index < split.num_val_documents else "train"
    digest = hashlib.sha256(text.encode()).digest()
    return "val" if int.from_bytes(digest[:8], "big") < split.val_fraction * 2**64 else "train"


def refuse_empty_split(split: Split, num_documents: int, num_train: int, num_val: int) -> None:
    """Raise SpecError unless both splits have a document with text, of `num_documents` in all."""
    if num_documents == 0:
        raise SpecError("tokenize.corpus: no documents: its files hold no document. Give files with text")
    if num_train + num_val == 0:
        raise SpecError(
            f"tokenize.corpus: no documents with text: all of its {num_documents:,} documents are empty. "
            "Give files with text, or check tokenize.corpus.text_column"
        )
    if num_train and num_val:
        return
    missing, change = ("training", "Lower") if num_val else ("validation", "Raise")
    if isinstance(split, FirstDocuments):
        raise SpecError(
            f"tokenize.split.num_val_documents = {split.num_val_documents:,}: leaves no {missing} document "
            f"with text, of {num_documents:,} in the corpus. Set it so that both splits have some"
        )
    raise SpecError(
        f"tokenize.split.val_fraction = {split.val_fraction}: by their hashes, none of the "
        f"{num_train + num_val:,} documents with text is for {missing}. {change} it, give more documents, "
        "or use tokenize.split.kind=first_documents"
    )
