"""Nothing that steers a terminal comes through."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.printable import printable, printable_json


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;PWNED\x07\x1b[2Jeve", r"\x1b]0;PWNED\x07\x1b[2Jeve"),
        ("\x9b2J", r"\x9b2J"),
        ("a\rb\x7f", r"a\rb\x7f"),
        ("abc\u202edef", r"abc\u202edef"),
        ("\udcff", r"\udcff"),
        ("größer, 数\tand\nlines 🦔\u200d", "größer, 数\tand\nlines 🦔\u200d"),
    ],
)
def test_what_steers_is_spelled_out_and_the_rest_stays(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters()))
def test_json_stays_equal_and_can_be_written(text: str) -> None:
    written = printable_json(json.dumps({"name": text}, ensure_ascii=False))
    assert json.loads(written) == {"name": text}
    written.encode()
    assert printable(written) == written
