"""Reader of JSON texts: one object a line, or one array of objects, both streamed.

The text is the value of one key; `meta.text` also means the key `text` of the object under `meta`. Other
content of an object is ignored: numbers of any length, NaN, duplicate keys (the last one counts).
"""

import codecs
import json
from collections.abc import Iterator
from typing import Any

from schemas.errors import SpecError
from stages.corpora.contents import MAX_DOCUMENT_BYTES, Content, decode
from stages.corpora.sources import OnRead

BOM = "\ufeff"
_MAX_NAMES = 20
_READ_BYTES = 2**16
_ONE_A_LINE = "Write one JSON object a line, for example with: jq -c . FILE, or one array of objects"
# A token that is cut off at the end of what was read begins so near to it, unless it is a string.
_LONGEST_TOKEN = 16

# Numbers are not used, and Python refuses to read those of more than 4,300 digits: their lengths stand for
# them.
_DECODER = json.JSONDecoder(parse_int=len)


def documents(content: Content, key: str, on_read: OnRead) -> Iterator[str]:
    """The text of each object.

    Raises SpecError with file, line and remedy for anything but an object with a text.
    """
    begins = content.head.removeprefix(BOM.encode()).lstrip()
    if begins.startswith(b"["):
        yield from _array(content, key, on_read)
    else:
        yield from _lines(content, key, on_read)


def _lines(content: Content, key: str, on_read: OnRead) -> Iterator[str]:
    path, offset, number, reported = content.path, 0, 0, 0
    while line := content.stream.readline(MAX_DOCUMENT_BYTES + 1):
        number += 1
        if len(line) > MAX_DOCUMENT_BYTES:
            raise SpecError(
                f"{path}:{number}: the line is longer than {MAX_DOCUMENT_BYTES:,} bytes. {_ONE_A_LINE}"
            )
        if content.compression is None:
            on_read(len(line))
        else:
            reported = _tell(content, reported, on_read)
        text = decode(line, path, offset)
        offset += len(line)
        if not text.isspace():
            try:
                row = _DECODER.decode(text)
            except (ValueError, RecursionError) as error:
                if text.removeprefix(BOM).isspace():
                    continue
                row = _second_look(text, f"{path}:{number}", error)
            yield text_of(row, key, f"{path}:{number}")
    if content.compression is not None:
        _tell(content, reported, on_read)


def _tell(content: Content, reported: int, on_read: OnRead) -> int:
    position = content.position()
    on_read(position - reported)
    return position


def _second_look(text: str, place: str, error: ValueError | RecursionError) -> Any:
    """The value of a line after a byte order mark, which concatenated files have inside.

    Raises SpecError for a broken line.
    """
    if text.startswith(BOM):
        try:
            return _DECODER.decode(text.removeprefix(BOM))
        except (ValueError, RecursionError) as other:
            error = other
    raise SpecError(f"{place}: is not valid JSON: {_reason(text, error)}") from error


def _reason(text: str, error: ValueError | RecursionError) -> str:
    if (first := text.find("\0")) >= 0:
        return (
            f"{text.count(chr(0)):,} NUL bytes from character {first + 1:,} on: the file was not written to "
            "its end. Write it again, or remove them: tr -d '\\000'"
        )
    if not isinstance(error, json.JSONDecodeError):
        return f"it is nested too deep ({error}). {_ONE_A_LINE}"
    if error.msg == "Extra data":
        lines_of_mac = (
            "; its lines end in CR alone, convert them: tr '\\r' '\\n'" if "\r" in text.rstrip() else ""
        )
        return (
            f"a second value begins at character {error.pos + 1:,} of the line{lines_of_mac}. {_ONE_A_LINE}"
        )
    if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
        return (
            f"the line ends in the middle of a value ({error.msg} at character {error.pos + 1:,}): the file "
            f"was cut off, or one value goes over several lines. Fetch it again, or else: {_ONE_A_LINE}"
        )
    return f"{error.msg} at character {error.pos + 1:,} of the line. {_ONE_A_LINE}"


def _array(content: Content, key: str, on_read: OnRead) -> Iterator[str]:
    """The elements of one array, which may be spread over lines.

    The buffer holds at most twice the longest element.
    """
    reader = _Buffer(content, on_read)
    reader.skip_space()
    reader.position += 1  # [
    number = 0
    while (character := reader.skip_space()) != "]" or number:
        number += 1
        place = f"{content.path}:{reader.line}"
        value = reader.value(place, number)
        if character != "{":
            raise SpecError(
                f"{place}: is a JSON list whose element {number:,} is a {type(value).__name__}, not an "
                f"object with the text under {key!r}. {_ONE_A_LINE}"
            )
        yield text_of(value, key, f"{place}: element {number:,}")
        following = reader.skip_space()
        reader.position += 1
        if following == "]":
            break
        if following != ",":
            shown = repr(following) if following else "the end of the file"
            raise SpecError(
                f"{content.path}:{reader.line}: {shown} follows element {number:,} of the array instead of , "
                "or ]: the file is broken or cut off. Write it again"
            )
    else:
        reader.position += 1
    if following := reader.skip_space():
        rest = "NUL bytes follow" if following == chr(0) else "text follows"
        raise SpecError(f"{content.path}:{reader.line}: {rest} the end of the array. {_ONE_A_LINE}")


class _Buffer:
    """The text of a file from `position` on; it is read as needed."""

    def __init__(self, content: Content, on_read: OnRead) -> None:
        self.position, self.line = 0, 1
        self._content, self._on_read = content, on_read
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text, self._offset, self._told = "", 0, 0
        self._at_end = False
        self._read(_READ_BYTES)
        self._text = self._text.removeprefix(BOM)

    def skip_space(self) -> str:
        """The next character that is not white space, without consuming it; "" at the end."""
        while True:
            rest = len(self._text)
            while self.position < rest and (character := self._text[self.position]) in " \t\r\n":
                self.line += character == "\n"
                self.position += 1
            if self.position < rest:
                return self._text[self.position]
            if not self._read(_READ_BYTES):
                return ""

    def value(self, place: str, number: int) -> Any:
        """Consume element `number` of the array.

        Raises SpecError, naming `place`, if it is broken or too long.
        """
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self.position)
            except RecursionError as error:
                raise SpecError(
                    f"{place}: is not valid JSON: element {number:,}: {_reason('', error)}"
                ) from error
            except json.JSONDecodeError as error:
                maybe_cut = (
                    error.msg.startswith("Unterminated string")
                    or error.pos >= len(self._text) - _LONGEST_TOKEN
                )
                if not maybe_cut or not self._read(max(_READ_BYTES, len(self._text) - self.position)):
                    line = self.line + self._text.count("\n", self.position, error.pos)
                    raise SpecError(
                        f"{place}: is not valid JSON: element {number:,} of the array: {error.msg}, in line "
                        f"{line}. The file is broken or cut off: write it again"
                    ) from error
                if len(self._text) - self.position > MAX_DOCUMENT_BYTES:
                    raise SpecError(
                        f"{place}: element {number:,} is longer than {MAX_DOCUMENT_BYTES:,} "
                        f"characters. {_ONE_A_LINE}"
                    ) from error
                continue
            self.line += self._text.count("\n", self.position, end)
            self.position = end
            return value

    def _read(self, num_bytes: int) -> bool:
        """Read more text and drop the consumed part; False at the end of the file."""
        data = self._content.stream.read(num_bytes)
        try:
            text = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError:
            # Again, for the place in the file: the decoder may have kept the beginning of a character.
            kept = self._decoder.getstate()[0]
            text = decode(kept + data, self._content.path, self._offset - len(kept))
        self._offset += len(data)
        self._text = self._text[self.position :] + text
        self.position = 0
        self._told = _tell(self._content, self._told, self._on_read)
        return bool(data)


def text_of(row: Any, key: str, place: str) -> str:
    """The text under `key` of an object; "" for null.

    Raises SpecError, naming `place`, if there is none.
    """
    if not isinstance(row, dict):
        raise SpecError(
            f"{place}: is a JSON {type(row).__name__}. Each must be one JSON object with the text "
            f"under {key!r}"
        )
    if key in row:
        value = row[key]
    else:
        values = list(_nested(row, key))
        if not values:
            raise SpecError(
                f"{place}: has no key tokenize.corpus.text_column = {key!r}; its keys are "
                f"{listed(_names_of(row))}. Set tokenize.corpus.text_column to one of them"
            )
        value = values[0]
    return checked(value, f"{place}: the value of {key!r}", key)


def checked(value: Any, place: str, key: str) -> str:
    """`value` if it is text that UTF-8 can hold, "" for None. Otherwise raises SpecError, naming `place`."""
    if value is None:
        return ""
    if not isinstance(value, str):
        inside = (
            [f"{key}.{name}" for name, item in value.items() if isinstance(item, str)]
            if isinstance(value, dict)
            else []
        )
        example = f"; a text inside an object is named with a dot: {listed(inside)}" if inside else ""
        raise SpecError(
            f"{place} is a {type(value).__name__}, not text. Set tokenize.corpus.text_column to the name of "
            f"the text{example}"
        )
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise SpecError(
                f"{place} has half of a surrogate pair at character {error.start:,}, which no UTF-8 "
                "text can hold. Repair it"
            ) from error
    return value


def listed(names: Any) -> str:
    """Names in quotes, at most 20 of them."""
    shown = [repr(str(name)) for name in names]
    if not shown:
        return "none"
    more = f" and {len(shown) - _MAX_NAMES} more" if len(shown) > _MAX_NAMES else ""
    return ", ".join(shown[:_MAX_NAMES]) + more


def _nested(row: dict[str, Any], key: str) -> Iterator[Any]:
    for name, value in row.items():
        if name == key:
            yield value
        elif key.startswith(f"{name}."):
            if isinstance(value, dict):
                yield from _nested(value, key[len(name) + 1 :])
            elif value is None:
                yield None


def _names_of(row: dict[str, Any]) -> Iterator[str]:
    for name, value in row.items():
        yield name
        if isinstance(value, dict):
            yield from (f"{name}.{inner}" for inner, item in value.items() if isinstance(item, str))
