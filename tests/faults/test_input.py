"""Bad and strange input: corpora through the real tokenize stage, and every setting of every preset with
values it must refuse.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows.inputs.specs import resolve
from presets import PRESETS, load_preset
from schemas.errors import FairwayError, SpecError
from schemas.introspect import SettingInfo, describe_fields
from schemas.runtime import RunOptions
from schemas.tokenize_corpus import FilesCorpus, HashFraction, TokenizedCorpus, TokenizerSpec, TokenizeSpec
from stages.corpora import locate
from stages.store.hashing import FileHashes
from stages.store.workspace import Workspace
from stages.tokenize_corpus import tokenize_corpus
from tests.faults.harness import FULL, ROOT

pytestmark = pytest.mark.faults

WORDS = "Some plain words about nothing in particular, to have text for a tokenizer. "


def lines(*texts: object) -> bytes:
    return "\n".join(json.dumps({"text": text}) for text in texts).encode()


def plain(count: int = 60) -> list[str]:
    return [f"{WORDS * 4}Number {number}." for number in range(count)]


def parquet(path: Path, **columns: list) -> None:
    pq.write_table(pa.table(columns), path)


REFUSED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "invalid UTF-8": (
        "a.txt",
        lambda path: path.write_bytes(b"fine so far \xff\xfe"),
        "byte 12 is not valid UTF-8",
    ),
    "a JSON line broken in half": (
        "a.jsonl",
        lambda path: path.write_bytes(lines(*plain())[:-40]),
        ":60: is not valid JSON",
    ),
    "JSON nested 100,000 deep": (
        "a.jsonl",
        lambda path: path.write_bytes(b"[" * 100_000),
        ":1: is not valid JSON",
    ),
    "a number instead of text": ("a.jsonl", lambda path: path.write_bytes(lines(7)), "is a int, not text"),
    "half of a surrogate pair": (
        "a.jsonl",
        lambda path: path.write_bytes(b'{"text": "\\ud83d"}'),
        "half of a surrogate pair",
    ),
    "a Parquet file without the column": (
        "a.parquet",
        lambda path: parquet(path, words=plain()),
        "tokenize.corpus.text_column",
    ),
    "a Parquet file cut off": (
        "a.parquet",
        lambda path: (parquet(path, text=plain()), path.write_bytes(path.read_bytes()[:-9])),
        "a.parquet",
    ),
    "only empty documents": ("a.jsonl", lambda path: path.write_bytes(lines("", "", "")), "empty"),
    "an empty file": ("a.jsonl", lambda path: path.write_bytes(b""), "no document"),
}
STRANGE = (
    "שלום עולם " * 9,
    "مرحبا \u202e abc",
    "\U0001f469\u200d\U0001f467\U0001f3fd \U0001f3f3\ufe0f\u200d\U0001f308",
    "e\u0301",
)
TAKEN: dict[str, tuple[str, Callable[[Path], object]]] = {
    "NUL bytes in text": ("a.jsonl", lambda path: path.write_bytes(lines(*plain(), "a\0b\0\0c", "\0"))),
    "empty and one-character documents": (
        "a.jsonl",
        lambda path: path.write_bytes(lines(*plain(), "", "x", "é", " ", None)),
    ),
    "right-to-left text and emoji": ("a.jsonl", lambda path: path.write_bytes(lines(*plain(), *STRANGE))),
    "a document of 200 MB" if FULL else "a document of 4 MB": (
        "a.jsonl",
        lambda path: path.write_bytes(
            lines(*plain(), WORDS * ((200_000_000 if FULL else 4_000_000) // len(WORDS)))
        ),
    ),
}  # fmt: skip


def tokenize(folder: Path, name: str, make: Callable[[Path], object]) -> TokenizedCorpus:
    folder.mkdir()
    make(folder / name)
    corpus = FilesCorpus(paths=(str(folder / name),))
    tokenizer = TokenizerSpec(vocab_size=320, training_bytes=1_000_000)
    spec = TokenizeSpec(
        corpus=corpus, tokenizer=tokenizer, split=HashFraction(val_fraction=0.2), compressor_baselines=False
    )
    out = folder / "out"
    out.mkdir()
    work = Workspace(folder, out, PurePosixPath("out"), RunOptions(), FileHashes(None))
    return tokenize_corpus(spec, locate(spec), work)


def test_corpora_that_must_be_refused(tmp_path: Path, figure: Callable[..., None]) -> None:
    wrong = []
    for number, (kind, (name, make, expected)) in enumerate(REFUSED.items()):
        try:
            tokenize(tmp_path / str(number), name, make)
            wrong.append((kind, "taken"))
        except FairwayError as error:
            if expected not in str(error):
                wrong.append((kind, str(error)))
    told = f"{len(REFUSED) - len(wrong)} refused with file, place and remedy {wrong or ''}"
    figure("6", f"{len(REFUSED)} corpora that cannot be used ({', '.join(REFUSED)})", told, not wrong)


def test_corpora_that_are_strange_but_text(tmp_path: Path, figure: Callable[..., None]) -> None:
    slowest = 0.0
    for number, (name, make) in enumerate(TAKEN.values()):
        started = time.perf_counter()
        corpus = tokenize(tmp_path / str(number), name, make)
        slowest = max(slowest, time.perf_counter() - started)
        assert corpus.train.num_tokens > 0
        assert corpus.val.num_tokens > 0
    figure(
        "6",
        f"strange text ({', '.join(TAKEN)})",
        f"all tokenized, the slowest in {slowest:.1f} s",
        slowest < 240,
    )


SETTINGS: list[tuple[str, SettingInfo]] = [
    (preset, info) for preset in PRESETS for info in describe_fields(load_preset(preset))
]
WRONG_TYPE = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
).map(lambda value: json.dumps({"unasked": value}))
NOT_A_NUMBER = st.sampled_from(
    ["true", "false", "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "words", "[]", "{}"]
)
OUT_OF_RANGE = st.integers(1, 10**9).map(lambda value: str(-value))


def refuses(preset: str, name: str, text: str) -> None:
    with pytest.raises(SpecError) as caught:
        resolve(preset, [f"{name}={text}"])
    assert name in str(caught.value)
    assert len(str(caught.value)) > len(name) + 10


NUMBERS = [
    item
    for item in SETTINGS
    if isinstance(item[1].value, int | float) and not isinstance(item[1].value, bool)
]
BOUNDED = [item for item in NUMBERS if "at least" in item[1].bounds or "above" in item[1].bounds]
NAMES = {known.name for _, known in SETTINGS}


def wrong_type(setting: tuple[str, SettingInfo], text: str) -> tuple[str, str, str] | None:
    preset, info = setting
    takes_text = isinstance(info.value, str) or (info.value is None and "path" in info.name)
    return None if takes_text else (preset, info.name, text)


def as_given(setting: tuple[str, SettingInfo], text: str) -> tuple[str, str, str]:
    return setting[0], setting[1].name, text


def misspelled(setting: tuple[str, SettingInfo], place: int, letter: str) -> tuple[str, str, str] | None:
    preset, info = setting
    head, _, last = info.name.rpartition(".")
    place = min(place, len(last))
    wrong = f"{head}.{last[:place]}{letter}{last[place:]}"
    return None if wrong in NAMES else (preset, wrong, "1")


PROPERTIES = {
    "wrong type": (st.builds(wrong_type, st.sampled_from(SETTINGS), WRONG_TYPE), 2000 if FULL else 100),
    "no finite number": (st.builds(as_given, st.sampled_from(NUMBERS), NOT_A_NUMBER), 1000 if FULL else 60),
    "out of range": (st.builds(as_given, st.sampled_from(BOUNDED), OUT_OF_RANGE), 1000 if FULL else 60),
    "misspelled": (
        st.builds(misspelled, st.sampled_from(SETTINGS), st.integers(0, 30), st.sampled_from("abcxyz_")),
        1000 if FULL else 60,
    ),
}
"""What is wrong with a value: (preset, name, text) that must be refused, None for one that need not be, and
how many are tried.
"""


@cache
def count_refused(wrong: str) -> int:
    """How many values with this fault were refused, each by name; raises AssertionError for one that was
    not.
    """
    values, count = PROPERTIES[wrong]
    refused = 0

    @given(values)
    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))
    def each_is_refused(value: tuple[str, str, str] | None) -> None:
        nonlocal refused
        if value is not None:
            refuses(*value)
            refused += 1

    each_is_refused()
    return refused


@pytest.mark.parametrize("wrong", PROPERTIES)
def test_a_wrong_value_of_any_setting_is_refused_by_name(wrong: str) -> None:
    assert count_refused(wrong) > 30


def test_nothing_was_started_for_a_refused_setting(tmp_path: Path, figure: Callable[..., None]) -> None:
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "run",
        "--preset",
        "smoke",
        "--store",
        str(tmp_path / "store"),
        "--set",
    ]
    answer = subprocess.run(
        [*command, "train.schedule.max_steps=-3"], cwd=ROOT, capture_output=True, text=True
    )
    clean = (
        answer.returncode == 2
        and "train.schedule.max_steps = -3" in answer.stderr
        and not (tmp_path / "store").exists()
    )
    refused = sum(count_refused(wrong) for wrong in PROPERTIES)
    done = (
        f"every setting of every preset ({len(SETTINGS)}): wrong type, no finite number, out of "
        "range, misspelled, by property"
    )
    figure(
        "6",
        done,
        f"{refused:,} values refused, each by name; status 2 and no store made: {clean}",
        clean and refused > 150,
    )
