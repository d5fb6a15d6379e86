"""Parser of Python source, including newer syntax and self-extracting programs; it executes nothing."""

import ast
import base64
import binascii
import bz2
import io
import lzma
import re
import tokenize
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from stages.submission.untrusted import SOURCE_LIMIT_BYTES

MAX_DEPTH = 20
MAX_REWRITTEN_BYTES = 4 * 2**20
_DICTIONARY_BYTES = 64 * 2**20  # the largest that xz's presets use
_UNPACKING_BYTES = 256 * 2**20


@dataclass
class Parsed:
    """`tree` is None where `error` says why. `newer` names the syntax that this Python does not have."""

    tree: ast.Module | None = None
    error: str = ""
    newer: str = ""


def parse_python(source: bytes) -> Parsed:
    """The syntax tree of a program. Syntax newer than this Python is first rewritten into older syntax."""
    try:
        return Parsed(_parsed(source))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        message = f"{type(error).__name__}: {str(error)[:200]}"
        if not isinstance(error, SyntaxError) or len(source) > MAX_REWRITTEN_BYTES:
            return Parsed(error=message)
    try:
        rewritten, newer = older_syntax(_decoded(source))
        return Parsed(_parsed(rewritten), newer=newer) if newer else Parsed(error=message)
    except (SyntaxError, ValueError, RecursionError, MemoryError, LookupError):
        return Parsed(error=message)


def _parsed(source: bytes | str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a program's escapes are worth is not asked here
        return ast.parse(source)


def _decoded(source: bytes) -> str:
    encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
    return source.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


# ---- syntax of a newer Python
# -------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"""#[^\n]*|(?:(?<!\w)(?P<prefix>[rRbBuUfFtT]{1,2}))?(?P<quote>\"\"\"|'''|"|')""")
_TYPE_PARAMETERS = re.compile(
    r"^([ \t]{0,200}(?:async[ ])?(?:def|class)[ ]\w{1,200})\[[^\n]{0,500}?\](?=[(:])", re.MULTILINE
)
_TYPE_ALIAS = re.compile(
    r"^([ \t]{0,200})type[ ](\w{1,200})(?:\[[^\n=]{0,500}?\])?[ ]{0,9}=(?!=)", re.MULTILINE
)
_BARE_EXCEPT = re.compile(
    r"^([ \t]{0,200}except\*?[ ])([\w.]{1,200}(?:,[ ]{0,9}[\w.]{1,200}){1,20})[ ]{0,9}:", re.MULTILINE
)
_LATER = (
    (_TYPE_PARAMETERS, r"\1", "type parameters (Python 3.12)"),
    (_TYPE_ALIAS, r"\1\2 =", "the type statement (Python 3.12)"),
    (_BARE_EXCEPT, r"\1(\2):", "except without parentheses (Python 3.14)"),
)


def older_syntax(text: str) -> tuple[str, str]:
    """`text` rewritten for Python 3.11, and the names of the newer syntax in it ("" if there is none).

    Strings nested in the fields of an f-string are moved to assignments at the end of the text. Raises
    ValueError for strings that do not end.
    """
    rewritten = _FStrings(text).rewritten()
    newer = ["f-strings as of Python 3.12"] if rewritten != text else []
    for pattern, replacement, name in _LATER:
        rewritten, count = pattern.subn(replacement, rewritten)
        newer += [name] if count else []
    return rewritten, ", ".join(newer)


class _FStrings:
    """Rewrites f-strings whose fields hold quotes, backslashes, line ends or comments."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.taken: list[str] = []

    def rewritten(self) -> str:
        body, _ = self._code(0, "")
        names = [f"{_TAKEN}{index} = {literal}" for index, literal in enumerate(self.taken)]
        return "\n".join([body, *names, ""]) if names else body

    def _code(self, at: int, ends: str, depth: int = 0) -> tuple[str, int]:
        """Code from `at`, up to the first character of `ends` outside brackets.

        Strings inside a field are taken out.
        """
        if depth > MAX_DEPTH:
            raise ValueError("strings are nested too deeply")
        pieces: list[str] = []
        open_brackets = 0
        while at < len(self.text):
            if ends:
                char = self.text[at]
                if (
                    not open_brackets
                    and char in ends
                    and not (char == "!" and self.text[at + 1 : at + 2] == "=")
                ):
                    return "".join(pieces), at
                open_brackets += (char in "([{") - (char in ")]}")
                match = _TOKEN.match(self.text, at)
                if match is None:
                    pieces.append(" " if char == "\n" else char)
                    at += 1
                    continue
            elif (match := _TOKEN.search(self.text, at)) is None:
                break
            pieces.append(self.text[at : match.start()])
            if match["quote"] is None:
                pieces.append("" if ends else match[0])
                at = match.end()
                continue
            literal, at = self._string(match, depth)
            if ends:
                self.taken.append(literal)
                literal = f"{_TAKEN}{len(self.taken) - 1}"
            pieces.append(literal)
        if ends:
            raise ValueError("a field of an f-string does not end")
        return "".join([*pieces, self.text[at:]]), len(self.text)

    def _string(self, match: re.Match[str], depth: int) -> tuple[str, int]:
        prefix, quote = match["prefix"] or "", match["quote"]
        formatted = any(letter in prefix for letter in "fFtT")
        pieces, at = [prefix.replace("t", "f").replace("T", "f") + quote], match.end()
        while at < len(self.text):
            if self.text.startswith(quote, at):
                return "".join([*pieces, quote]), at + len(quote)
            char, pair = self.text[at], self.text[at : at + 2]
            if char == "\n" and len(quote) == 1:
                break
            if formatted and char == "{" and pair != "{{":
                field_text, at = self._field(at + 1, depth + 1)
                pieces.append(field_text)
                continue
            taken = pair if char == "\\" or (formatted and pair in ("{{", "}}")) else char
            pieces.append(taken)
            at += len(taken)
        raise ValueError("a string does not end")

    def _field(self, at: int, depth: int) -> tuple[str, int]:
        """A field after its brace: the expression, a conversion, a format with fields of its own."""
        expression, at = self._code(at, "}:!", depth)
        pieces = ["{", expression]
        while self.text[at : at + 1] not in ("}", ""):
            if self.text[at] == "{":
                inner, at = self._field(at + 1, depth + 1)
                pieces.append(inner)
                continue
            pieces.append(self.text[at])
            at += 1
        return "".join([*pieces, "}"]), at + 1


_TAKEN = "_string_of_a_field_"


# ---- names and constants
# ------------------------------------------------------------------------------------------------------


@dataclass
class Names:
    """The meaning of a module's names: `modules` by import (dotted), `values` by assignment anywhere."""

    modules: dict[str, str] = field(default_factory=dict)
    values: dict[str, list[ast.expr]] = field(default_factory=dict)

    @classmethod
    def of(cls, tree: ast.Module) -> "Names":
        names = cls()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    bound = alias.asname or alias.name.partition(".")[0]
                    names.modules[bound] = alias.name if alias.asname else bound
            elif isinstance(node, ast.ImportFrom):
                origin = "." * node.level + (node.module or "")
                for alias in node.names:
                    names.modules[alias.asname or alias.name] = f"{origin}.{alias.name}"
            elif isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    if isinstance(target, ast.Name):
                        names.values.setdefault(target.id, []).append(node.value)
        return names

    def dotted(self, node: ast.expr) -> str:
        """`node` as a dotted name with imports resolved: `B.b85decode` → "base64.b85decode". "" for any other
        expression.
        """
        parts: list[str] = []
        while len(parts) <= MAX_DEPTH:
            if isinstance(node, ast.Attribute):
                parts.append(node.attr)
                node = node.value
            elif isinstance(node, ast.Call) and (got := self._got(node)) is not None:
                parts.append(got[1])
                node = got[0]
            elif isinstance(node, ast.Call) and (module := self.imported(node)):
                return ".".join([module, *reversed(parts)])
            elif isinstance(node, ast.Name):
                return ".".join([self._meant(node.id), *reversed(parts)])
            else:
                return ""
        return ""

    def _meant(self, name: str) -> str:
        """The module that a name stands for, also where it was assigned: `r = requests`."""
        if name not in self.modules and len(values := self.values.get(name, [])) == 1:
            if isinstance(value := values[0], ast.Name) and value.id in self.modules:
                return self.modules[value.id]
            if isinstance(value, ast.Call) and (module := self.imported(value)):
                return module
        return self.modules.get(name, name)

    def _got(self, call: ast.Call) -> tuple[ast.expr, str] | None:
        """The object and the name of `getattr(object, "name")`."""
        if isinstance(call.func, ast.Name) and call.func.id == "getattr" and len(call.args) >= 2:
            name = call.args[1]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                return call.args[0], name.value
        return None

    def imported(self, call: ast.Call) -> str:
        """The module of `__import__("name")` or `importlib.import_module("name")`; "" for other calls and
        computed names.
        """
        called = ""
        if isinstance(call.func, ast.Name):
            called = call.func.id
        elif isinstance(call.func, ast.Attribute):
            called = call.func.attr
        called = self.modules.get(called, called).rpartition(".")[2]
        if called in ("__import__", "import_module") and call.args:
            for value in self.constants(call.args[0]):
                return value
        return ""

    def constants(self, node: ast.AST, depth: int = 0) -> Iterator[str]:
        """Every text that an expression holds, in its order; names are looked up."""
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str):
                yield node.value
        elif isinstance(node, ast.Name):
            if depth < 3:
                for value in self.values.get(node.id, [])[:20]:
                    yield from self.constants(value, depth + 1)
        else:
            for child in ast.iter_child_nodes(node):
                yield from self.constants(child, depth)


# ---- programs that unpack themselves
# --------------------------------------------------------------------------------------------


def _expanded(make: Callable[[], Any]) -> Callable[[bytes], bytes | None]:
    def expand(packed: bytes) -> bytes | None:
        try:
            expander = make()
            content = expander.decompress(packed, SOURCE_LIMIT_BYTES)
        except (lzma.LZMAError, zlib.error, EOFError, OSError, ValueError):
            return None
        return content if expander.eof else None

    return expand


def _zstandard(packed: bytes) -> bytes | None:
    import zstandard

    try:
        with zstandard.ZstdDecompressor(max_window_size=_UNPACKING_BYTES).stream_reader(packed) as reader:
            content = reader.read(SOURCE_LIMIT_BYTES + 1)
    except zstandard.ZstdError:
        return None
    return content if len(content) <= SOURCE_LIMIT_BYTES else None


_raw_lzma = _expanded(
    lambda: lzma.LZMADecompressor(
        lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": _DICTIONARY_BYTES}]
    )
)
_DECODERS: dict[str, Callable[[bytes], bytes | None]] = {
    "base64.b85decode": base64.b85decode,
    "base64.a85decode": base64.a85decode,
    "base64.b64decode": base64.b64decode,
    "base64.urlsafe_b64decode": base64.urlsafe_b64decode,
    "base64.standard_b64decode": base64.b64decode,
    "base64.b32decode": base64.b32decode,
    "base64.b16decode": base64.b16decode,
    "binascii.unhexlify": binascii.unhexlify,
    "binascii.a2b_base64": binascii.a2b_base64,
    "bytes.fromhex": binascii.unhexlify,
    "lzma.decompress": _expanded(lambda: lzma.LZMADecompressor(memlimit=_UNPACKING_BYTES)),
    "zlib.decompress": _expanded(zlib.decompressobj),
    "gzip.decompress": _expanded(lambda: zlib.decompressobj(31)),
    "bz2.decompress": _expanded(bz2.BZ2Decompressor),
    "zstandard.decompress": _zstandard,
    "compile": lambda text: text,
    "bytes": lambda text: text,
    "str": lambda text: text,
    "io.BytesIO": lambda text: text,
}
_METHODS = ("decode", "encode", "strip", "read", "getvalue")


def unpacked(node: ast.expr, names: Names, depth: int = 0) -> bytes | None:
    """The final content of a constant that known decoders unpack, or None. `names` resolves names."""
    if depth > MAX_DEPTH:
        return None
    if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
        return node.value.encode("utf-8", "surrogatepass") if isinstance(node.value, str) else node.value
    if isinstance(node, ast.Name):
        values = names.values.get(node.id, [])
        return unpacked(values[0], names, depth + 1) if len(values) == 1 else None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = unpacked(node.left, names, depth + 1), unpacked(node.right, names, depth + 1)
        return left + right if left is not None and right is not None else None
    if not isinstance(node, ast.Call):
        return None
    name, method = names.dotted(node.func), node.func.attr if isinstance(node.func, ast.Attribute) else ""
    if name.endswith("ZstdDecompressor"):
        return None
    if (
        method == "decompress"
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Call)
    ):
        name = (
            "zstandard.decompress"
            if names.dotted(node.func.value.func).endswith(".ZstdDecompressor")
            else name
        )
    if name in _DECODERS and node.args:
        packed = unpacked(node.args[0], names, depth + 1)
        raw = any(
            word.arg == "format" and names.dotted(word.value).endswith("FORMAT_RAW") for word in node.keywords
        )
        raw = raw or (
            name == "lzma.decompress"
            and len(node.args) > 1
            and names.dotted(node.args[1]).endswith("FORMAT_RAW")
        )
        try:
            decode = _raw_lzma if raw else _DECODERS[name]
            return None if packed is None else decode(packed)
        except (ValueError, TypeError):
            return None
    if method in _METHODS and isinstance(node.func, ast.Attribute):
        return unpacked(node.func.value, names, depth + 1)
    return None
