"""Numbers in untrusted texts and submission.json: reading them and comparing them."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeGuard

MIN_DIGITS = 3  # decimals that a score in a text has at least
_KEPT_DIGITS = 4  # zeros at the end are dropped down to so many decimals
_MOST_DIGITS = 12
_WORD = re.compile(r"[\w.,]+")
_INTEGER = re.compile(r"\d[\d,_]{0,30}")
_UNITS = {
    **dict.fromkeys(("ms", "msec", "milliseconds"), 0.001),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600.0),
}
_DURATION = re.compile(
    r"[ \t]{0,3}[:=]?[ \t]{0,3}(\d{1,12})(?:\.(\d{1,9}))?[ \t]{0,2}([A-Za-z]{1,12})(?![A-Za-z])"
)
_CLOCK_WORDS = frozenset(
    ["time", "wallclock", "wall", "clock", "total", "max", "mean", "avg", "elapsed", "8xh100"]
)
_TRAINING_WORDS = frozenset(["train", "training"])
_EVALUATION_WORDS = frozenset(["eval", "evaluation"])
_TOTAL_WORDS = frozenset(["bytes", "total", "artifact", "submission", "size", "max", "mean", "final"])
_MODEL_WORDS = _TOTAL_WORDS | frozenset(
    ["model", "compressed", "quantized", "quant", "weights", "zlib", "zstd", "lzma", "brotli"]
)
_PACKED = re.compile(r"int\d{1,2}|zstd\d{0,3}|lzma\d?|zlib\d?|brotli\d{0,2}|lrzip|mixed|ternary|ptz|fwz")
_GROUPS = frozenset(["artifact", "size", "sizes", "bytes", "metrics", "result", "final", "submission"])
_CODE_WORDS = frozenset(["bytes", "code", "size", "script"])


@dataclass(frozen=True)
class Figure:
    """A number as it was written: its value and how many decimals it has."""

    value: float
    decimals: int

    def agrees(self, other: "Figure") -> bool:
        """Whether both are the same number, rounded or cut to the decimals of the coarser one."""
        fine, coarse = (self, other) if self.decimals >= other.decimals else (other, self)
        unit = 10.0**-coarse.decimals
        if abs(fine.value - coarse.value) <= 0.5000001 * unit:
            return True
        return fine.decimals > coarse.decimals and 0 <= fine.value - coarse.value < unit * 0.9999999

    def __str__(self) -> str:
        return f"{self.value:.{self.decimals}f}"


def figure_of(value: Any) -> Figure | None:
    """Read a figure of submission.json with its digits.

    Zeros at its end count only up to the fourth decimal.
    """
    if isinstance(value, Decimal) and value.is_finite() and value.copy_abs() < 10**15:
        written, needed = -int(value.as_tuple().exponent), -int(value.normalize().as_tuple().exponent)
        return Figure(float(value), max(0, min(written, max(_KEPT_DIGITS, needed), _MOST_DIGITS)))
    return Figure(float(value), 0) if type(value) is int and abs(value) < 10**15 else None


def figures_in(text: str) -> Iterator[Figure]:
    """Every decimal number of a text. The time is linear in the text, whatever it holds."""
    for match in _WORD.finditer(text):
        word = match[0]
        head, point, tail = word.strip(".,_").partition(".")
        head = head.replace(",", "")
        if point and head.isdecimal() and tail.isdecimal() and len(head) <= 15 and len(tail) <= 20:
            yield Figure(float(f"{head}.{tail}"), len(tail))


def integer_after(text: str, at: int) -> int | None:
    """The first whole number after a colon or equals sign that follows `at`; None if there is none."""
    signs = [place for sign in ":=" if (place := text.find(sign, at)) >= 0]
    if signs and (match := _INTEGER.search(text, min(signs))):
        if text[match.end() : match.end() + 2].strip(".")[:1].isdigit():
            return None  # a decimal number
        digits = match[0].replace(",", "").replace("_", "")
        return int(digits) if len(digits) <= 15 else None
    return None


def seconds_at(text: str, at: int) -> tuple[float, float] | None:
    """The duration at position `at`, after an optional colon: seconds, and the error that rounding allows."""
    match = _DURATION.match(text, at)
    if match is None or (unit := _UNITS.get(match[3].lower())) is None:
        return None
    return float(f"{match[1]}.{match[2] or 0}") * unit, 0.5 * unit * 10.0 ** -len(match[2] or "")


def is_number(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and abs(value) < 1e15 and math.isfinite(value)


def number_of(value: Any) -> float | None:
    """A positive number, also one that is written as text: "15,863,068 bytes"."""
    if isinstance(value, str) and len(value) <= 40:
        digits = value.lower().removesuffix("bytes").strip().replace(",", "").replace("_", "")
        value = int(digits) if digits.isdecimal() and digits.isascii() and len(digits) <= 15 else None
    return float(value) if is_number(value) and value > 0 else None


def training_seconds(info: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Name and seconds of every field about the time of training."""
    yield from _durations(info, _TRAINING_WORDS, ("wallclock_seconds", "wall_clock_seconds", "wallclock_s"))


def evaluation_seconds(info: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Name and seconds of every field about the time of evaluation."""
    yield from _durations(info, _EVALUATION_WORDS, ())


def _durations(
    info: dict[str, Any], about: frozenset[str], plain: tuple[str, ...]
) -> Iterator[tuple[str, float]]:
    for key, value in info.items():
        words = key.lower().split("_")[:8]
        units = [word for word in words if word in _UNITS]
        others = {word for word in words if word not in _UNITS}
        if len(units) != 1 or not is_number(value) or value <= 0:
            continue
        if key.lower() in plain or (others & about and others <= about | _CLOCK_WORDS):
            yield key, value * _UNITS[units[0]]


def total_bytes(info: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Name and bytes of every field that states the whole artifact, code and model: bytes_total,
    artifact_bytes, …
    """
    for key, words, value in _byte_fields(info):
        if words <= _TOTAL_WORDS and words & {"total", "artifact", "submission"}:
            yield key, value


def model_bytes(info: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Name and bytes of every field that states the packed model, perhaps without the code."""
    for key, words, value in _byte_fields(info):
        if words & {"model", "weights"} and all(
            word in _MODEL_WORDS or _PACKED.fullmatch(word) for word in words
        ):
            yield key, value


def code_bytes(info: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Name and bytes of every field that states the code."""
    for key, words, value in _byte_fields(info):
        if "code" in words and words <= _CODE_WORDS:
            yield key, value


def _entries(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else [value]


def _byte_fields(info: dict[str, Any]) -> Iterator[tuple[str, frozenset[str], int]]:
    nested = [
        info,
        *(value for key, value in info.items() if key.lower() in _GROUPS and isinstance(value, dict)),
    ]
    for group in nested:
        for key, value in group.items():
            words = frozenset(key.lower().split("_")[:8])
            if "bytes" in words:
                yield from (
                    (key, words, math.ceil(number))
                    for entry in _entries(value)[:1000]
                    if (number := number_of(entry)) is not None
                )
