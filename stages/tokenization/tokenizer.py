"""Tokenizer: a SentencePiece BPE model, trained on the training documents or ready-made and checked."""

import io
import logging
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import sentencepiece

from schemas.errors import SpecError
from schemas.tokenize_corpus import TokenizerSpec
from stages.core.bits_per_byte import SPACE_SYMBOL
from stages.core.shards import BOS_ID
from stages.corpora.sources import ready_made_tokenizer

log = logging.getLogger(__name__)

PAD_ID, EOS_ID, UNK_ID = 0, 2, 3
# SentencePiece drops training sentences of more than 4,192 bytes without a word.
MAX_SENTENCE_BYTES = 4096


class NoTrainingTextError(ValueError):
    """There is no text to train a tokenizer on."""


class VocabularyTooLargeError(SpecError):
    """The text cannot carry so many pieces; it carries `most`."""

    def __init__(self, message: str, most: int) -> None:
        super().__init__(message)
        self.most = most


def train_tokenizer(spec: TokenizerSpec, texts: Iterable[str]) -> bytes:
    """A serialized SentencePiece model of `spec.vocab_size` pieces from the first `spec.training_bytes`
    of `texts`.

    The same texts give the same bytes. Raises NoTrainingTextError for texts without a line, SpecError for a
    vocabulary that is too large or too small for them.
    """
    lines = sentences(texts, spec.training_bytes)
    first = next(lines, None)
    if first is None:
        raise NoTrainingTextError
    model = io.BytesIO()
    reading = _Reading(first, lines)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(reading),
            model_writer=model,
            model_type="bpe",
            vocab_size=spec.vocab_size,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="nmt_nfkc",
            add_dummy_prefix=False,
            character_coverage=spec.character_coverage,
            # Without a piece for the space, each would fall back to the three bytes of ▁.
            required_chars=SPACE_SYMBOL,
            pad_id=PAD_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            # The number is written into the model, so it must not depend on the machine; it does not change
            # the pieces.
            num_threads=2,
            minloglevel=2,
        )
    except RuntimeError as error:
        if reading.error is not None:
            raise reading.error  # noqa: B904 - SentencePiece had its text only
        if "all_chars_count" in str(error) or "sentences_.empty()" in str(error):
            raise NoTrainingTextError from error  # nothing but characters that normalisation drops
        raise _training_error(spec, error) from error
    return model.getvalue()


def sentences(texts: Iterable[str], max_bytes: int) -> Iterator[str]:
    """Lines of the texts, cut at spaces if possible, each of at most 4,096 UTF-8 bytes; `max_bytes` in all,
    at least one line.
    """
    taken = 0
    for text in texts:
        for line in text.split("\n"):
            if not line or line.isspace():
                continue
            for sentence in _cut(line):
                num_bytes = len(sentence.encode())
                if taken and taken + num_bytes > max_bytes:
                    return
                taken += num_bytes
                yield sentence


def check_tokenizer(path: Path, spec: TokenizerSpec) -> None:
    """Raise SpecError for an unreadable ready-made model, another size, or other special ids."""
    tokenizer = ready_made_tokenizer(path, "tokenize.tokenizer.model_path")
    size = tokenizer.vocab_size()
    if size != spec.vocab_size:
        raise SpecError(
            f"tokenize.tokenizer.vocab_size = {spec.vocab_size}: the model {path} has {size} pieces. Set it "
            f"to {size}"
        )
    ids = (tokenizer.pad_id(), tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.unk_id())
    if ids != (PAD_ID, BOS_ID, EOS_ID, UNK_ID):
        raise SpecError(
            f"tokenize.tokenizer.model_path = {path}: its ids are pad {ids[0]}, bos {ids[1]}, eos {ids[2]}, "
            f"unk {ids[3]} (-1: none); shards need pad {PAD_ID}, bos {BOS_ID}, eos {EOS_ID}, unk {UNK_ID}. "
            "Use such a model, or leave it empty to train one"
        )


def _cut(line: str) -> Iterator[str]:
    if len(line) * 4 <= MAX_SENTENCE_BYTES or len(data := line.encode()) <= MAX_SENTENCE_BYTES:
        yield line
        return
    while len(data) > MAX_SENTENCE_BYTES:
        end = data.rfind(b" ", 1, MAX_SENTENCE_BYTES)
        if end < 0:
            end = MAX_SENTENCE_BYTES
            while data[end] & 0xC0 == 0x80:  # inside a character
                end -= 1
        yield data[:end].decode()
        data = data[end:]
    yield data.decode()


class _Reading:
    """Iterator of sentences for SentencePiece. It keeps the first error, which SentencePiece would wrap into
    its own.
    """

    def __init__(self, first: str, others: Iterator[str]) -> None:
        self.error: BaseException | None = None
        self._sentences = chain([first], others)

    def __iter__(self) -> Iterator[str]:
        try:
            yield from self._sentences
        except BaseException as error:
            self.error = error
            raise


def _training_error(spec: TokenizerSpec, error: RuntimeError) -> SpecError:
    message = str(error)
    field = f"tokenize.tokenizer.vocab_size = {spec.vocab_size}"
    if most := re.search(r"set it to a value <= (\d+)", message):
        return VocabularyTooLargeError(
            f"{field}: the training text is too small for so many pieces. Set it to at most "
            f"{most[1]}, or give more text",
            int(most[1]),
        )
    if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return SpecError(
            f"{field}: the training text has so many different characters that at least {least[1]} pieces "
            "are needed. Raise it, or lower tokenize.tokenizer.character_coverage = "
            f"{spec.character_coverage}"
        )
    return SpecError(
        f"{field}: SentencePiece cannot train a model on this text ({message}). Change tokenize.tokenizer or "
        "give other text"
    )
