"""Text of users and strangers for a terminal: what would steer the terminal is spelled out instead."""

import re
import unicodedata

# Control characters without line feed and tab (C0, DEL, C1), line and paragraph separators, what turns the
# direction of text, and lone surrogates, which no encoding can write.
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""`text` with each steering character as Python spells it: an escape sequence cannot begin, for ESC
    becomes `\x1b`.
    """
    return _STEERING.sub(lambda found: ascii(found.group())[1:-1], text)


def printable_json(text: str) -> str:
    r"""The same for JSON text, which stays equal JSON: each such character is written as `\uXXXX`."""
    return _STEERING.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def one_line(text: str) -> str:
    r"""`text` on one line, for a table or a message: every kind of space is a plain one, all that cannot
    be seen is spelled out.
    """
    return "".join(char if char.isprintable() else _spelled(char) for char in text)


def _spelled(char: str) -> str:
    if char in "\n\t" or unicodedata.category(char) == "Zs":
        return " "
    return char.encode("unicode_escape").decode("ascii")
