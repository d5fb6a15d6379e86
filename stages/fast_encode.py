"""Text to token ids, the same as SentencePiece's own `encode` gives, several times faster: each distinct word is encoded once.

In a BPE model no piece of which has ▁ after its first character, no merge crosses the space between two words. So the ids of
a text are those of its words put together, and a word's ids can be looked up. For other models the whole text is encoded.
"""

import hashlib
from array import array
from dataclasses import dataclass
from typing import NamedTuple

import sentencepiece

SPACE_SYMBOL = "▁"
# What str.split() takes for white space (all of Unicode's White_Space and four control characters).
PYTHON_SPACES = frozenset(
    "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680"
    "\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)

# Reading the rules of a model takes 0.3 s; for SentencePiece's usual ones the answer is known.
NMT_NFKC_SHA256 = "1e2c7b43d3ee9755ceaa2ac335e253d8703604e0249ee1e81156c92b46423844"
NMT_NFKC_SPACES = PYTHON_SPACES - frozenset("\v\x1c\x1d\x1e\x1f\x85")

# A word is encoded behind this one, because SentencePiece drops the space at the start of what it is given.
_ANCHOR = "x"
_MAX_CACHED_WORDS = 300_000
_MAX_CACHED_CHARACTERS = 16_000_000
_SLICE_CHARACTERS = 1_000_000

_BPE = 2
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6


class TextEncoder:
    """Encodes texts with one SentencePiece model (its serialized bytes); `by_words` says whether words can be looked up.

    The look-up table stays below about 100 MB. Raises RuntimeError when the model cannot be read.
    """

    def __init__(self, model: bytes) -> None:
        self._tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model)
        spaces = _word_separators(model, self._tokenizer)
        self.by_words = spaces is not None
        self._spaces = spaces or frozenset()
        self._other_spaces = sorted(PYTHON_SPACES - self._spaces)
        # Where ▁ itself is not turned into a space, it is dropped at the end of a text and kept inside it.
        self._keeps_symbol = self._tokenizer.normalize(f"{_ANCHOR}{SPACE_SYMBOL}{SPACE_SYMBOL}{_ANCHOR}").count(SPACE_SYMBOL * 2) > 0
        self._anchor_ids = len(self._tokenizer.encode(_ANCHOR))
        self._ids_of: dict[str, bytes] = {"": b""}
        self._cached_characters = 0

    def encode(self, text: str) -> bytes:
        """The ids of `text` as native uint16, without BOS; exactly `SentencePieceProcessor.encode(text)`."""
        if not self.by_words or (self._keeps_symbol and SPACE_SYMBOL in text):
            return _to_bytes(self._tokenizer.encode(text))
        parts: list[bytes] = []
        for part in _slices(text):
            words = self._words(part)
            start = 0
            # Only the first word that leaves anything has no space before it.
            while not parts and start < len(words):
                if ids := self._tokenizer.encode(words[start]):
                    parts.append(_to_bytes(ids))
                start += 1
            if start < len(words):
                parts.append(self._look_up(words[start:] if start else words))
        return b"".join(parts)

    def _words(self, text: str) -> list[str]:
        if any(character in text for character in self._other_spaces):
            return (text.replace("\n", " ") if "\n" in self._spaces else text).split(" ")
        return text.split()

    def _look_up(self, words: list[str]) -> bytes:
        try:
            return b"".join(map(self._ids_of.__getitem__, words))
        except KeyError:
            self._learn(set(words).difference(self._ids_of))
        ids = b"".join(map(self._ids_of.__getitem__, words))
        if len(self._ids_of) > _MAX_CACHED_WORDS or self._cached_characters > _MAX_CACHED_CHARACTERS:
            self._ids_of, self._cached_characters = {"": b""}, 0
        return ids

    def _learn(self, words: set[str]) -> None:
        new = list(words)
        encoded = self._tokenizer.encode([f"{_ANCHOR} {word}" for word in new], num_threads=1)
        self._ids_of.update((word, _to_bytes(ids[self._anchor_ids :])) for word, ids in zip(new, encoded, strict=True))
        self._cached_characters += sum(map(len, new))


def _to_bytes(ids: list[int]) -> bytes:
    return array("H", ids).tobytes()


def _slices(text: str) -> list[str]:
    """`text` in parts of about a million characters, cut at spaces, so that a long document is not all words at once."""
    parts, start = [], 0
    while len(text) - start > _SLICE_CHARACTERS:
        end = text.rfind(" ", start, start + _SLICE_CHARACTERS)
        if end < 0:
            end = text.find(" ", start + _SLICE_CHARACTERS)
        if end < 0:
            break
        parts.append(text[start:end])
        start = end + 1
    parts.append(text[start:])
    return parts


def _word_separators(model: bytes, tokenizer: sentencepiece.SentencePieceProcessor) -> frozenset[str] | None:
    """The characters of PYTHON_SPACES at which a text may be cut into words that are encoded apart; None: at none.

    They must be what the normalisation turns into a plain space, whatever stands beside them.
    """
    known = _read_model(model)
    types = [piece.type for piece in known.pieces]
    if known.model_type != _BPE or set(types) != {_NORMAL, _UNKNOWN, _CONTROL, _BYTE} or types.count(_BYTE) != 256:
        return None
    if any(SPACE_SYMBOL in piece.text[1:] or " " in piece.text for piece in known.pieces if piece.type == _NORMAL):
        return None
    if tokenizer.normalize(f"  {_ANCHOR}  {_ANCHOR} ").removeprefix(SPACE_SYMBOL) != f"{_ANCHOR}{SPACE_SYMBOL}{_ANCHOR}":
        return None  # spaces are kept as they are, or not written as ▁
    if not known.character_rules:
        return frozenset(" ")
    spaces = NMT_NFKC_SPACES if hashlib.sha256(known.character_rules).hexdigest() == NMT_NFKC_SHA256 else rule_spaces(model)
    return spaces if " " in spaces else None


def rule_spaces(model: bytes) -> frozenset[str]:
    """The characters of PYTHON_SPACES that the model's normalisation rules turn into a space in any surroundings."""
    rules = sentencepiece.SentencePieceNormalizer(model_proto=model).decompile()
    if any("  " in target or SPACE_SYMBOL in target for _, target in rules):
        return frozenset()  # such spaces are dropped at the end of a text and kept inside it
    spaces = {source for source, target in rules if target == " "} | ({" "} - {source for source, _ in rules})
    in_longer_rules = {character for source, _ in rules if len(source) > 1 for character in source}
    return frozenset(spaces - in_longer_rules) & PYTHON_SPACES


class _Piece(NamedTuple):
    text: str
    type: int


@dataclass(frozen=True)
class _Model:
    pieces: list[_Piece]
    model_type: int
    character_rules: bytes


def _read_model(model: bytes) -> _Model:
    """What the Python package does not tell of a model, from its protocol buffer (sentencepiece_model.proto).

    ModelProto: 1 pieces (1 text, 3 type), 2 trainer_spec (3 model_type),
    3 normalizer_spec (2 precompiled_charsmap).
    """
    pieces, model_type, character_rules = [], 1, b""
    for number, value in _fields(model):
        if number == 1 and isinstance(value, bytes):
            piece = dict(_fields(value))
            text, kind = piece.get(1, b""), piece.get(3, _NORMAL)
            assert isinstance(text, bytes)
            assert isinstance(kind, int)
            pieces.append(_Piece(text.decode(), kind))
        elif number == 2 and isinstance(value, bytes):
            model_type = next((v for n, v in _fields(value) if n == 3 and isinstance(v, int)), model_type)
        elif number == 3 and isinstance(value, bytes):
            character_rules = next((v for n, v in _fields(value) if n == 2 and isinstance(v, bytes)), character_rules)
    return _Model(pieces, model_type, character_rules)


def _fields(message: bytes) -> list[tuple[int, int | bytes]]:
    """(number, value) of each field of a protocol buffer message; fixed-width values come as bytes."""
    found: list[tuple[int, int | bytes]] = []
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            value |= (byte & 0x7F) << shift
            position, shift = position + 1, shift + 7
            if byte < 0x80:
                return value

    while position < len(message):
        number, wire_type = divmod(varint(), 8)
        if wire_type == 0:
            found.append((number, varint()))
            continue
        length = {1: 8, 5: 4}[wire_type] if wire_type in (1, 5) else varint()
        found.append((number, message[position : position + length]))
        position += length
    return found
