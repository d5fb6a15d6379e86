"""Word boundaries of a SentencePiece model: characters at which a text may be cut into independent words.

In a BPE model without a piece that has ▁ after its first character, no merge crosses the space between two
words. Without a piece in which a letter and something else are neighbours, none crosses from letters to
punctuation or digits either.

The model's normalisation decides which characters become a space. The model's settings are read from its
protocol buffer, because the Python package does not give them.
"""

import hashlib
import unicodedata
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import sentencepiece

from stages.core.bits_per_byte import SPACE_SYMBOL

ASCII_SPACES = frozenset("\t\n\v\f\r\x1c\x1d\x1e\x1f ")

# Reading the rules of a model takes 0.3 s; for SentencePiece's usual ones the answer is known.
NMT_NFKC_SHA256 = "1e2c7b43d3ee9755ceaa2ac335e253d8703604e0249ee1e81156c92b46423844"
NMT_NFKC_SPACES = frozenset("\t\n\f\r ")

_BPE = 2
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6


@dataclass(frozen=True)
class WordRules:
    """The ASCII_SPACES at which a text may be cut before encoding, always with " " among them, whether the
    normalisation keeps printable ASCII characters, and whether a word may be cut between an ASCII letter and
    another printable ASCII character.
    """

    separators: frozenset[str]
    keeps_printable_ascii: bool
    letters_stand_apart: bool


def word_rules(model: bytes) -> WordRules | None:
    """How to cut texts into words for a model.

    None if words cannot be encoded apart. This is so if the model is no BPE with byte fallback, has pieces
    that span words, keeps runs of spaces, or has user-defined symbols, which may hold anything. Raises
    RuntimeError if `model` is no model.
    """
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model)
    known = _read_model(model)
    types = [piece.type for piece in known.pieces]
    if (
        known.model_type != _BPE
        or set(types) != {_NORMAL, _UNKNOWN, _CONTROL, _BYTE}
        or types.count(_BYTE) != 256
    ):
        return None
    if any(
        SPACE_SYMBOL in piece.text[1:] or " " in piece.text for piece in known.pieces if piece.type == _NORMAL
    ):
        return None
    if tokenizer.normalize("  x  x ").removeprefix(SPACE_SYMBOL) != f"x{SPACE_SYMBOL}x":
        return None
    apart = not any(_crosses_letters(piece.text) for piece in known.pieces if piece.type == _NORMAL)
    if not known.character_rules:
        return WordRules(frozenset(" "), keeps_printable_ascii=True, letters_stand_apart=apart)
    if hashlib.sha256(known.character_rules).hexdigest() == NMT_NFKC_SHA256:
        return WordRules(NMT_NFKC_SPACES, keeps_printable_ascii=True, letters_stand_apart=apart)
    spaces = rule_spaces(model)
    return WordRules(spaces, False, False) if " " in spaces else None


def _crosses_letters(piece: str) -> bool:
    """Whether an ASCII character of the piece and the next one are a letter and something else.

    The next one need not be ASCII: the normalisation may have composed it, as é. Marks begin no word.
    """
    return any(
        before.isascii() and before.isalpha() != after.isalpha() and unicodedata.category(after)[0] != "M"
        for before, after in pairwise(piece)
    )


def rule_spaces(model: bytes) -> frozenset[str]:
    """The ASCII_SPACES that the model's normalisation turns into one space in any context."""
    rules = sentencepiece.SentencePieceNormalizer(model_proto=model).decompile()
    if any("  " in target or SPACE_SYMBOL in target for _, target in rules):
        return frozenset()  # such spaces are dropped at the end of a text and kept inside it
    spaces = {source for source, target in rules if target == " "} | ({" "} - {source for source, _ in rules})
    in_longer_rules = {character for source, _ in rules if len(source) > 1 for character in source}
    return frozenset(spaces - in_longer_rules) & ASCII_SPACES


class _Piece(NamedTuple):
    text: str
    type: int


@dataclass(frozen=True)
class _Model:
    pieces: list[_Piece]
    model_type: int
    character_rules: bytes


def _read_model(model: bytes) -> _Model:
    """Parse a ModelProto (sentencepiece_model.proto): 1 pieces (1 text, 3 type), 2 trainer_spec (3
    model_type), 3 normalizer_spec (2 precompiled_charsmap).
    """
    pieces, model_type, character_rules = [], 1, b""
    for number, value in _fields(model):
        if not isinstance(value, bytes):
            continue
        if number == 1:
            piece = dict(_fields(value))
            text, kind = piece.get(1, b""), piece.get(3, _NORMAL)
            assert isinstance(text, bytes)
            assert isinstance(kind, int)
            pieces.append(_Piece(text.decode(), kind))
        elif number == 2:
            model_type = next((v for n, v in _fields(value) if n == 3 and isinstance(v, int)), model_type)
        elif number == 3:
            character_rules = next(
                (v for n, v in _fields(value) if n == 2 and isinstance(v, bytes)), character_rules
            )
    return _Model(pieces, model_type, character_rules)


def _fields(message: bytes) -> list[tuple[int, int | bytes]]:
    """(number, value) of each field of a protocol buffer message; fixed-width values come as bytes."""
    fields: list[tuple[int, int | bytes]] = []
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
            fields.append((number, varint()))
            continue
        length = {1: 8, 5: 4}[wire_type] if wire_type in (1, 5) else varint()
        fields.append((number, message[position : position + length]))
        position += length
    return fields
