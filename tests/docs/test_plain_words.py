"""The words stay plain: short sentences, no private word, and a module says first what it is."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = {
    str(page.relative_to(ROOT)): page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if page.name != "log.md"  # the log keeps the words of its time
}
MODULES = {
    str(module.relative_to(ROOT)): module
    for folder in ("flows", "stages")
    for module in sorted((ROOT / folder).rglob("*.py"))
    if not module.is_relative_to(ROOT / "stages" / "core")  # its docstrings are bytes of the package
}

MOST_WORDS = 30
"""In one sentence. The rule of the house is 20; a list of names may need more."""

PRIVATE_WORDS = {
    r"by hand": "alone, or without Prefect",
    r"firings?": "a scheduled run",
    r"what ships": "the package",
    r"ships": "packages",
    r"doomed": "certain to fail",
    r"strangers?": "untrusted",
    r"settles?|settled": "set the final state, or decided",
    r"told (?:otherwise|by)": "unless a setting says so",
    r"mended": "repaired, or with its bugs fixed",
    r"heeds?": "read",
}
"""A word of the house that no reader knows, and what to write instead."""

# The first line of a docstring names the module in the field's term, and not by a question.
_QUESTION = re.compile(r"(?:What|Which|Whether|How|Where|Everything|Those|All)\b")

_FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_NOT_PROSE = re.compile(r"^(?:\||#|!|<!--| {4}).*$", re.MULTILINE)
_LINK = re.compile(r"\[([^\]]*)\]\([^)\s]*\)")


def sentences(text: str) -> Iterator[str]:
    """The sentences of Markdown or of a docstring, without code, tables, headings and pictures.

    Code in backticks is the word `code`; a link is its text. A colon ends no sentence.
    """
    prose = _NOT_PROSE.sub("", _FENCE.sub("", text))
    prose = _LINK.sub(r"\1", re.sub(r"`[^`]+`", "code", prose))
    for block in re.split(r"\n\s*\n|^\s*(?:-|\d+\.) ", prose, flags=re.MULTILINE):
        for sentence in re.split(r"(?<=[.!?])\W*\s", " ".join(block.split())):
            if re.search(r"\w", sentence):
                yield sentence


def num_words(sentence: str) -> int:
    return len(re.findall(r"\S*\w\S*", sentence))


def private_words(text: str) -> list[str]:
    """Each private word in the sentences of `text`, with what to write instead."""
    return [
        f"{match[0]!r} in {sentence[:80]!r}: write {instead}"
        for sentence in sentences(text)
        for word, instead in PRIVATE_WORDS.items()
        for match in re.finditer(rf"\b(?:{word})\b", sentence, re.IGNORECASE)
    ]


def docstring(module: Path) -> str:
    return ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""


@pytest.mark.parametrize("name", PAGES)
def test_sentences_of_a_page_are_short(name: str) -> None:
    text = PAGES[name].read_text(encoding="utf-8")
    too_long = [sentence for sentence in sentences(text) if num_words(sentence) > MOST_WORDS]
    assert not too_long, f"{name}: more than {MOST_WORDS} words: {too_long}"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_no_private_word(name: str) -> None:
    assert not private_words(PAGES[name].read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PAGES)
def test_a_page_explains_the_mark_where_it_first_names_it(name: str) -> None:
    """The mark is the loss to beat; the word alone says that to no reader."""
    prose = list(sentences(PAGES[name].read_text(encoding="utf-8")))
    first = next(
        (at for at, sentence in enumerate(prose) if re.search(r"\b(?:a|the) mark\b", sentence)), None
    )
    if first is not None:
        assert re.search(r"loss\b.*\bbeat", " ".join(prose[: first + 2])), prose[first]


def test_modules_say_in_short_sentences_what_they_are() -> None:
    wrong = {}
    for name, module in MODULES.items():
        text = docstring(module)
        long = [sentence for sentence in sentences(text) if num_words(sentence) > MOST_WORDS]
        if long or private_words(text):
            wrong[name] = [*long, *private_words(text)]
    assert not wrong


def test_the_first_line_of_a_module_names_it() -> None:
    wrong = [name for name, module in MODULES.items() if _QUESTION.match(docstring(module))]
    assert not wrong, f"these begin with a question instead of a term: {wrong}"


def test_the_rules_themselves_can_fail() -> None:
    page = "One `a b c` is\nhere. Two!\n\n- **Three:** [a link](x.md) by hand\n\n| what ships |\n"
    page += "\n```\nwhat ships\n```\n"
    assert [num_words(sentence) for sentence in sentences(page)] == [4, 1, 5]
    assert len(private_words(page)) == 1
    assert _QUESTION.match("What a store holds.")
    assert not _QUESTION.match("Whatever.")
