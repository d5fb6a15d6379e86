"""Fast tokenization: the ids of SentencePiece's own `encode`, several times as fast.

If words are independent (see `separators`), the ids of a text are those of its words in order. Each distinct
word is encoded once and then looked up. In most models letters and what is beside them are independent too;
then "word," is two words. Other models encode the whole text. Array operations do
the lookup, so that threads share the work.
"""

import queue
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, pairwise

import numpy as np
import sentencepiece

from schemas.errors import SpecError
from stages.core.bits_per_byte import SPACE_SYMBOL
from stages.processes.cores import usable_cores
from stages.tokenization.separators import word_rules
from stages.tokenization.word_table import PADDING, WordTable

# A word is encoded behind this one, because SentencePiece drops the space at the start of what it is given.
# A part of a word that begins with a letter is encoded behind the other one.
_ANCHOR, _OTHER_ANCHOR = "x", "("


def _anchor(first_byte: int) -> str:
    """What a word that begins with this byte is encoded behind, so that no piece spans both."""
    return _OTHER_ANCHOR if chr(first_byte).isascii() and chr(first_byte).isalpha() else _ANCHOR


# What stands before a word in the text of many words.
_BEFORE = [b"" if byte == ord(" ") else f" {_anchor(byte)}".encode() for byte in range(256)]
_PRINTABLE_ASCII = bytes(range(0x21, 0x7F))
_NOT_PLAIN = np.array([byte != ord(" ") and byte not in _PRINTABLE_ASCII for byte in range(256)])
_BATCH_CHARACTERS = 1_000_000
# SentencePiece takes about 70 bytes of memory for each byte of what it encodes at once.
_MAX_BYTES_AT_ONCE = 20_000_000
_WAITING_BATCHES = 2  # for each thread
_MAX_THREADS = 4  # what Python itself does for a text is not shared

# Kinds of bytes. A word ends where two neighbours have no bit in common and are not both spaces.
_SPACE, _LETTER, _PRINTABLE, _ELSE = 0b00, 0b01, 0b10, 0b11


class TextEncoder:
    """Encodes texts with one SentencePiece model (its serialized bytes); `by_words` says whether words are
    looked up.

    It holds up to about 100 MB, and 1.4 GB while it encodes the longest allowed word. Use it in one thread at
    a time. Raises RuntimeError if the model cannot be read.
    """

    def __init__(self, model: bytes) -> None:
        self._tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model)
        rules = word_rules(model)
        self.by_words = rules is not None
        kinds, with_space = bytearray([_ELSE] * 256), bytearray(range(256))
        for byte in _PRINTABLE_ASCII:
            is_letter = rules is not None and rules.letters_stand_apart and chr(byte).isalpha()
            kinds[byte] = _LETTER if is_letter else _PRINTABLE
        for separator in rules.separators if rules else ():
            kinds[ord(separator)], with_space[ord(separator)] = _SPACE, ord(" ")
        self._kinds, self._with_space = bytes(kinds), bytes(with_space)
        pieces = [self._tokenizer.id_to_piece(token) for token in range(self._tokenizer.vocab_size())]
        self._begins_word = np.array([piece.startswith(SPACE_SYMBOL) for piece in pieces])
        # Words that are sure to have exactly one piece that begins with ▁.
        self._has_plain_words = rules is not None and rules.keeps_printable_ascii and SPACE_SYMBOL in pieces
        # Where ▁ itself is not turned into a space, it is dropped at the end of a text and kept inside it.
        self._keeps_symbol = SPACE_SYMBOL * 2 in self._tokenizer.normalize(
            f"{_ANCHOR}{SPACE_SYMBOL}{SPACE_SYMBOL}{_ANCHOR}"
        )
        # Ids of each anchor at the start of a text, and after a space.
        anchors = (_ANCHOR, _OTHER_ANCHOR)
        self._num_start_ids = {anchor: len(self._tokenizer.encode(anchor)) for anchor in anchors}
        behind = {
            anchor: len(self._tokenizer.encode(f"{_ANCHOR} {anchor}")) - self._num_start_ids[_ANCHOR]
            for anchor in anchors
        }
        self._num_ids_before = np.array(
            [0 if byte == ord(" ") else behind[_anchor(byte)] for byte in range(256)]
        )
        self._start_table()

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text, (n,) uint16, without BOS: exactly `SentencePieceProcessor.encode(text)`.

        Raises SpecError for a word of more than 20 MB, or for such a text if the model does not encode by
        words.
        """
        results: list[np.ndarray] = [
            self._encode_apart(text) if self._stands_apart(text) else np.empty(0, np.uint16) for text in texts
        ]
        together = [index for index, text in enumerate(texts) if not self._stands_apart(text)]
        for index, ids in zip(
            together, self._encode_parts([texts[i].encode() for i in together], at_start=True), strict=True
        ):
            results[index] = ids
        return results

    def normalized_size(self, text: str) -> int:
        """UTF-8 bytes of the text after the tokenizer's normalisation, without a space at its very start.

        These are the bytes that its ids after a BOS stand for. They are counted in the text, not by ids; ▁ is
        a space, one byte.
        """
        parts = (
            [part.decode() for part in slices(text.encode())]
            if len(text) > _BATCH_CHARACTERS and self._can_cut(text)
            else [text]
        )
        normalized = (self._tokenizer.normalize(part).removeprefix(SPACE_SYMBOL) for part in parts)
        sizes = [
            len(part.encode()) - (len(SPACE_SYMBOL.encode()) - 1) * part.count(SPACE_SYMBOL)
            for part in normalized
            if part
        ]
        return sum(sizes) + max(len(sizes) - 1, 0)  # one space between parts

    def _can_cut(self, text: str) -> bool:
        return self.by_words and not (self._keeps_symbol and SPACE_SYMBOL in text)

    def _stands_apart(self, text: str) -> bool:
        return not self._can_cut(text) or len(text) > _BATCH_CHARACTERS

    def _encode_apart(self, text: str) -> np.ndarray:
        if not self._can_cut(text):
            _refuse_long(text.encode(), "a document for a tokenizer that does not encode word by word")
            return np.array(self._tokenizer.encode(text), np.uint16)
        pieces: list[np.ndarray] = []
        for part in slices(text.encode()):
            pieces += [ids for ids in self._encode_parts([part], at_start=not pieces) if ids.size]
        return np.concatenate(pieces) if pieces else np.empty(0, np.uint16)

    def _encode_parts(self, parts: list[bytes], at_start: bool) -> list[np.ndarray]:
        """The ids of each part of a text. At the start of a text, no space stands before the first word that
        has ids.
        """
        if self._table.is_full():
            self._start_table()
        # A space before each part and PADDING spaces behind the last.
        text = b" ".join([b"", *parts, b" " * (PADDING - 1)])
        data = np.frombuffer(text.translate(self._with_space), np.uint8)
        kinds = np.frombuffer(text.translate(self._kinds), np.uint8)
        part_starts = np.cumsum([1] + [len(part) + 1 for part in parts])
        before, after = kinds[:-1], kinds[1:]
        is_edge = ((before & after) == 0) & ((before | after) != 0)
        starts = np.flatnonzero(is_edge & (after != _SPACE)) + 1
        ends = np.flatnonzero(is_edge & (before != _SPACE)) + 1
        word_bounds = np.searchsorted(starts, part_starts)
        starts = starts - (kinds[starts - 1] == _SPACE)  # the space belongs to the word
        if data.size > _MAX_BYTES_AT_ONCE and starts.size:
            longest = int((ends - starts).argmax())
            word = data[starts[longest] : ends[longest]].tobytes().removeprefix(b" ")
            _refuse_long(word, "a run of text without white space")
        rows = self._table.find(data, starts, ends)
        if at_start:
            for first, end in pairwise(word_bounds.tolist()):
                self._replace_first(data, starts, ends, rows, first, end)
        ids, bounds = self._table.ids(rows)
        return [ids[first:end] for first, end in pairwise(bounds[word_bounds].tolist())]

    def _replace_first(
        self, data: np.ndarray, starts: np.ndarray, ends: np.ndarray, rows: np.ndarray, first: int, end: int
    ) -> None:
        """Give the first of words [first, end) that has ids those that it has without a space before it."""
        for word in range(first, end):
            text = data[starts[word] : ends[word]].tobytes().removeprefix(b" ")
            row = self._first_words.get(text)
            if row is None:
                ids = np.array(self._tokenizer.encode(text.decode()), np.uint16)
                row = self._first_words[text] = int(self._table.add(ids, np.array([ids.size]))[0])
            rows[word] = row
            if self._table.has_ids(row):
                return

    def _start_table(self) -> None:
        self._table = WordTable(self._encode_words)
        self._first_words: dict[bytes, int] = {}

    def _encode_words(self, words: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of words, word by word, and the number of ids of each. A word begins with a space, or stands
        inside a word of the text.
        """
        is_plain = np.zeros(len(words), bool)
        if self._has_plain_words and words:
            text = np.frombuffer(b"".join(words), np.uint8)
            lengths = np.fromiter(map(len, words), np.int64, len(words))
            is_plain = ~np.logical_or.reduceat(_NOT_PLAIN[text], np.cumsum(lengths) - lengths)
        plain = self._encode_plain_words([word for word, plain in zip(words, is_plain, strict=True) if plain])
        others = [word for word, plain in zip(words, is_plain, strict=True) if not plain]
        anchors = [_anchor(word[0]) for word in others]
        texts = [anchor + word.decode() for anchor, word in zip(anchors, others, strict=True)]
        encoded = [
            ids[self._num_start_ids[anchor] :]
            for anchor, ids in zip(anchors, self._tokenizer.encode(texts, num_threads=1), strict=True)
        ]
        counts = np.empty(len(words), np.int64)
        counts[is_plain], counts[~is_plain] = plain[1], [len(ids) for ids in encoded]
        belongs_to_plain = np.repeat(is_plain, counts)
        ids = np.empty(len(belongs_to_plain), np.uint16)
        ids[belongs_to_plain], ids[~belongs_to_plain] = (
            plain[0],
            [token for item in encoded for token in item],
        )
        return ids, counts

    def _encode_plain_words(self, words: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """The same for words of printable ASCII: encoded as one text, and separated at pieces that begin with
        ▁.
        """
        first_bytes = [word[0] for word in words]
        parts = chain.from_iterable(zip(map(_BEFORE.__getitem__, first_bytes), words, strict=True))
        ids = self._tokenizer.encode(b"".join([_ANCHOR.encode(), *parts]).decode(), return_type="numpy")
        ids = ids[self._num_start_ids[_ANCHOR] :]
        starts = np.flatnonzero(self._begins_word[ids])
        assert len(starts) == len(words)
        counts = np.diff(starts, append=len(ids))
        of_anchor = self._num_ids_before[first_bytes]
        place = np.arange(len(ids)) - np.repeat(starts, counts)
        return ids[place >= np.repeat(of_anchor, counts)], counts - of_anchor


def _refuse_long(text: bytes, what: str) -> None:
    if len(text) > _MAX_BYTES_AT_ONCE:
        begins = text[:60].decode(errors="ignore")
        raise SpecError(
            f"corpus: {what} has {len(text):,} bytes, more than {_MAX_BYTES_AT_ONCE:,}; it begins "
            f"{begins!r}. Split it or leave it out; it is probably not text"
        )


def encode_stream(texts: Iterable[str], model: bytes, num_threads: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each text in order with its ids (n,) uint16 without BOS; memory holds a few batches of texts."""
    if num_threads == 1:
        encoder = TextEncoder(model)
        for batch in _batches(texts):
            yield from zip(batch, encoder.encode(batch), strict=True)
        return
    idle: queue.SimpleQueue[TextEncoder] = queue.SimpleQueue()
    for _ in range(num_threads):
        idle.put(TextEncoder(model))
    waiting: deque[tuple[list[str], Future[list[np.ndarray]]]] = deque()
    with ThreadPoolExecutor(num_threads, thread_name_prefix="encode") as threads:
        try:
            for batch in _batches(texts):
                waiting.append((batch, threads.submit(_encode_by_an_idle, idle, batch)))
                if len(waiting) > _WAITING_BATCHES * num_threads:
                    yield from _first_finished(waiting)
            while waiting:
                yield from _first_finished(waiting)
        finally:
            for _, future in waiting:
                future.cancel()


def default_threads() -> int:
    """The useful number of threads on this machine."""
    return min(usable_cores(), _MAX_THREADS)


def _encode_by_an_idle(idle: "queue.SimpleQueue[TextEncoder]", batch: list[str]) -> list[np.ndarray]:
    encoder = idle.get()
    try:
        return encoder.encode(batch)
    finally:
        idle.put(encoder)


def _first_finished(
    waiting: deque[tuple[list[str], Future[list[np.ndarray]]]],
) -> Iterator[tuple[str, np.ndarray]]:
    batch, future = waiting.popleft()
    return zip(batch, future.result(), strict=True)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def slices(text: bytes) -> Iterator[bytes]:
    """A long text in parts of about a million bytes, so that its words are not all in memory. It is cut at
    spaces, which are dropped.
    """
    start = 0
    while len(text) - start > _BATCH_CHARACTERS:
        end = text.rfind(b" ", start, start + _BATCH_CHARACTERS)
        if end < 0:
            end = text.find(b" ", start + _BATCH_CHARACTERS)
        if end < 0:
            break
        yield text[start:end]
        start = end + 1
    yield text[start:]
