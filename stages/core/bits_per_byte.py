"""How many bytes of text each token stands for: the denominator of bits per byte.

bpb = (sum of nll in nats / ln 2) / (sum of bytes). The bytes are those of the text after the tokenizer's
normalisation.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece

from stages.core.shards import BOS_ID

SPACE_SYMBOL = "▁"


class WrongBosError(ValueError):
    """A tokenizer with which text would be scored wrongly. The message says why and what to do."""


def bos_problem(tokenizer: sentencepiece.SentencePieceProcessor) -> str | None:
    """What is wrong with the id of the piece that begins a document, in words; None if nothing is.

    The model and the scorer know one id only: with another, documents would run into each other and be scored
    wrongly.
    """
    if (bos_id := tokenizer.bos_id()) == BOS_ID:
        return None
    has = f"its BOS has the id {bos_id}" if bos_id >= 0 else "it has no BOS piece, which begins each document"
    return (
        f"{has}; models and scores need id {BOS_ID}. Use a tokenizer trained with "
        f"bos_id={BOS_ID}, and shards made with it"
    )


@dataclass(frozen=True)
class TokenBytes:
    """Byte counts of a vocabulary of V pieces.

    base_bytes (V,) int64: UTF-8 bytes of the piece without its leading ▁; 1 for a byte-fallback piece; 0 for
    control, unused and unknown pieces. leading_space (V,) bool: the piece starts with ▁. boundary (V,) bool:
    control or unused.
    """

    base_bytes: np.ndarray
    leading_space: np.ndarray
    boundary: np.ndarray


def load_token_bytes(model_path: Path) -> TokenBytes:
    """The byte counts of a SentencePiece model's pieces.

    Raises OSError or RuntimeError when it cannot be read, WrongBosError when its BOS is not `BOS_ID`.
    """
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(model_path))
    if problem := bos_problem(tokenizer):
        raise WrongBosError(problem)
    vocab_size = tokenizer.vocab_size()
    base_bytes = np.zeros(vocab_size, np.int64)
    leading_space = np.zeros(vocab_size, np.bool_)
    boundary = np.zeros(vocab_size, np.bool_)
    for token in range(vocab_size):
        if tokenizer.is_control(token) or tokenizer.is_unused(token):
            boundary[token] = True
        elif tokenizer.is_byte(token):
            base_bytes[token] = 1
        elif not tokenizer.is_unknown(token):
            piece = tokenizer.id_to_piece(token)
            leading_space[token] = piece.startswith(SPACE_SYMBOL)
            # Some vocabularies have pieces of several words: each further ▁ stands for one byte, not for its
            # own three.
            base_bytes[token] = len(piece.removeprefix(SPACE_SYMBOL).replace(SPACE_SYMBOL, " ").encode())
    return TokenBytes(base_bytes, leading_space, boundary)


def count_bytes(table: TokenBytes, previous_ids: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Bytes that each of `ids` stands for after `previous_ids`; all three of one shape, the result int64.

    The space of a leading ▁ counts unless the token before is a boundary: nothing separates it from a word
    there. BOS itself stands for 0 bytes. Over a document with its BOS, the sum is the length of its
    normalised text, without a space at its very start.
    """
    return table.base_bytes[ids] + (table.leading_space[ids] & ~table.boundary[previous_ids])
