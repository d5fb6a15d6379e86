"""Source of a newer Python, packed source, names: read as far as the text goes."""

import ast
import base64
import bz2
import gzip
import lzma
import zlib

import pytest
import zstandard

from stages.submission.python_source import Names, older_syntax, parse_python, unpacked

NEWER = {
    "quotes": "d = {'a': 1}\nprint(f'{d['a']}')",
    "backslash": "print(f\"{'\\n'.join(a)}\")",
    "nested": 'x = f"{f"{f"{1}"}"}"',
    "lines": 'x = f"{\n  a  # why\n}"',
    "format": "x = f'{a!r:>{w['k']}}' 'b' f'{c}'",
    "triple": 'x = f"""{d["""k"""]}\n{{}}"""',
    "type parameters": "def f[T: (int, str), *U](x: T) -> T:\n    return x\nclass A[T](list[T]):\n    pass",
    "type statement": "type A[T] = list[T]\ntype = 3",
    "except": "try:\n    pass\nexcept A, b.B:\n    pass",
}


@pytest.mark.parametrize("kind", NEWER)
def test_newer_syntax_is_parsed_and_named(kind: str) -> None:
    rewritten, newer = older_syntax(NEWER[kind])
    assert "Python 3.1" in newer
    ast.parse(rewritten)
    parsed = parse_python(NEWER[kind].encode())
    assert parsed.tree is not None
    assert not parsed.error


def test_what_a_field_calls_is_still_seen() -> None:
    tree = parse_python(b"print(f'{os.system('curl x')}')").tree
    assert tree is not None
    call = next(
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    )
    assert [*Names.of(tree).constants(call.args[0])] == ["curl x"]


@pytest.mark.parametrize(
    "source",
    [
        "x = f'{a!r}' + \"{not a field}\" + r'\\\\' 'b'  # f'{'\n",
        "x = '''f\"{'''\ny = b'{' f'{{}}' rf'\\{a}'\n",
        "def f(x): return f'{x:{w}.{p}}' f'{x=}' f'{(lambda: 1)()}'\n",
    ],
)
def test_old_syntax_is_left_as_it_is(source: str) -> None:
    assert older_syntax(source) == (source, "")


@pytest.mark.parametrize(
    "source",
    ["def f(:", "f'{a['", "x = 'abc", "!pip install x", "print 'a'", "f'{a b}'", "class A[T", "f'{" * 500],
)
def test_what_is_no_python_of_any_version_has_its_reason(source: str) -> None:
    parsed = parse_python(source.encode())
    assert parsed.tree is None
    assert "SyntaxError" in parsed.error


RAW = [{"id": lzma.FILTER_LZMA2, "preset": 9}]
PACKED = {
    "exec(L.decompress(B.b85decode(DATA)))": lambda code: base64.b85encode(lzma.compress(code)),
    "exec(L.decompress(B.b85decode(DATA).strip()))": lambda code: base64.b85encode(lzma.compress(code)),
    "exec(Z.decompress(B.b64decode(DATA)).decode())": lambda code: base64.b64encode(zlib.compress(code)),
    "exec(compile(gzip.decompress(B.a85decode(DATA)), 'x', 'exec'))": lambda code: base64.a85encode(
        gzip.compress(code)
    ),
    "exec(bz2.decompress(bytes.fromhex(DATA)))": lambda code: bz2.compress(code).hex().encode(),
    "exec(L.decompress(B.b85decode(DATA),L.FORMAT_RAW,None,[{'id':33}]))": lambda code: base64.b85encode(
        lzma.compress(code, lzma.FORMAT_RAW, filters=RAW)
    ),
    "import zstandard as s\nexec(s.ZstdDecompressor().decompress(B.b85decode(DATA)))": lambda code: (
        base64.b85encode(zstandard.compress(code))
    ),
    "exec(Z.decompress(B.b85decode(DATA + '')))": lambda code: base64.b85encode(zlib.compress(code)),
}


@pytest.mark.parametrize("text", PACKED)
def test_a_constant_is_unpacked_as_the_program_would(text: str) -> None:
    code = b"print('inner')\n" * 100
    source = (
        f"import lzma as L, zlib as Z, base64 as B, gzip, bz2\nDATA = {PACKED[text](code).decode()!r}\n{text}"
    )
    assert unpacked(*_executed(source)) == code


def _executed(source: str) -> tuple[ast.expr, Names]:
    tree = ast.parse(source)
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    return next(call.args[0] for call in calls if call.func.id == "exec"), Names.of(tree)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "text",
    [
        "exec(open('x').read())",
        "exec(zlib.decompress(b'not compressed'))",
        "exec(zlib.decompress(DATA))",
        "exec(sys.argv[1])",
        "exec(decode('x'))",
        "exec(zlib.decompress(" + repr(zlib.compress(bytes(40 * 2**20), 9)) + "))",
    ],
    ids=range(6),
)
def test_what_is_computed_otherwise_is_not_unpacked(text: str) -> None:
    assert unpacked(*_executed("import zlib, sys\nDATA = 1\nDATA = 2\n" + text)) is None
