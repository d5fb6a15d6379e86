"""What a stranger wrote: nothing of it is obeyed by a terminal, and no line of it takes long."""

import importlib
import json
import os
import re
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from flows.cli.main import app
from schemas.printable import one_line
from stages.submission.figures import figures_in, integer_after, seconds_at
from stages.submission.logs import read_log
from stages.submission.untrusted import LINE_CHARACTERS, UnreadableError, read_json_object

Judge = Callable[..., dict[str, tuple[str, str]]]
EVIL = "\x1b]0;PWNED\x07\x1b[2J\x9b31m\u202ereversed\u2066\u200f\u2028\x7f\r\x00\ud800"
MODULES = ("rules", "logs", "figures", "network", "evaluation_calls", "python_source", "static_code")
SECONDS = 1.0


def harmful(text: str) -> list[str]:
    return [
        char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char != "\n"
    ]


@given(st.text() | st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zs", "Zl", "Zp"])))
def test_what_is_printable_obeys_nothing_and_keeps_the_rest(text: str) -> None:
    shown = one_line(text)
    assert not harmful(shown)
    assert "\n" not in shown
    assert one_line(shown) == shown
    shown.encode("utf-8")  # no lone surrogate is left
    if text.isprintable():
        assert shown == text


def test_an_escape_is_shown_as_one() -> None:
    assert one_line("a\x1b[2Jb\u202ec\td") == "a\\x1b[2Jb\\u202ec d"


@pytest.fixture
def evil_folder(tmp_path: Path, judge: Judge) -> Path:
    """Escape sequences in every place that a stranger fills."""
    name = EVIL.replace("\x00", "").replace("\ud800", "\udc80")
    info = {
        "github_id": EVIL,
        "name": EVIL,
        "track": EVIL + "nonrecord",
        EVIL: 1,
        "seeds": [EVIL],
        "wallclock_seconds": 9_000,
        "seed_results": {EVIL: {"val_bpb": 1.2345}, "7": {"val_bpb": 1.2345}},
    }
    judge(
        {**info, "bytes_total": 17_000_000, "bytes_code": 3},
        f"of {name}",
        README__md=f"# {EVIL}\n| `val_bpb` | {EVIL} |\n| `bytes_total` | 3 {EVIL} |\nval_bpb 1.3\n".encode(
            "utf-8", "surrogatepass"
        ),
        train_gpt__py=f"import os\nos.system('curl {EVIL}')\n".encode("utf-8", "replace")
        .replace(b"\x00", b"")
        .replace(b"\r", b""),
        more={
            f"log{name}.log": "Total submission size int8+zlib: 16050000 bytes\n",
            f"{name}.py": "import requests\n",
        },
    )
    return tmp_path / f"of {name}"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_nothing_of_a_folder_reaches_the_terminal_as_a_command(options: list[str], evil_folder: Path) -> None:
    (evil_folder / "link\x1b[2J").symlink_to("/etc/passwd")
    result = CliRunner().invoke(app, ["check", str(evil_folder), *options])
    assert result.exit_code == 1, result.output
    assert harmful(result.output) == []
    assert "\\x1b]0;PWNED" in result.output.replace("\\\\", "\\").replace("\n", "") or options == []
    if options:
        rules = json.loads(result.stdout)["rules"]
        assert any("\\x1b" in rule["reason"] for rule in rules)
        assert harmful("".join(rule["reason"] for rule in rules)) == []


@pytest.mark.parametrize(
    "command", [["check"], ["rescore", "--shards", "/etc/passwd", "--tokenizer", "/etc/passwd"]]
)
def test_errors_about_a_folder_are_shown_without_its_commands(command: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "of \x1b[2J\u202e"
    result = CliRunner().invoke(app, [command[0], str(folder), *command[1:]])
    assert result.exit_code == 2
    assert harmful(result.output) == []
    folder.mkdir()
    (folder / "model.fwz").symlink_to("/etc/passwd")
    result = CliRunner().invoke(app, [command[0], str(folder), *command[1:]])
    assert harmful(result.output) == []


def patterns() -> list[tuple[str, re.Pattern[str]]]:
    found = []
    for name in MODULES:
        module = importlib.import_module(f"stages.submission.{name}")
        for key, value in vars(module).items():
            found += [(f"{name}.{key}", value)] if isinstance(value, re.Pattern) else []
            if isinstance(value, tuple):
                found += [
                    (f"{name}.{key}", item)
                    for row in value
                    if isinstance(row, tuple)
                    for item in row
                    if isinstance(item, re.Pattern)
                ]
    return found


STARTS = (
    *("", "| `a` | ", "val_bpb_x 1.1 ", "train_time:", "trained 1 steps in ", "seed ", "f'"),
    *("def f[", "type A[", "except a", "0.", "bpb:"),
)
REPEATED = (
    *(
        " ",
        "0",
        ".",
        "0.",
        "a",
        "_",
        "-",
        ",",
        "|",
        "| ",
        "`",
        "'",
        '"',
        "{",
        "[",
        "a,",
        "train",
        "seed",
        "\t",
    ),
    *("0,", ": ", "="),
)


def hostile_lines() -> list[str]:
    return [(start + unit * LINE_CHARACTERS)[:LINE_CHARACTERS] for start in STARTS for unit in REPEATED]


def test_every_pattern_takes_little_time_for_any_line() -> None:
    """A pattern that backtracks took 84 s for one line of 3,908 characters."""
    found, lines = patterns(), hostile_lines()
    assert len(found) > 10
    for name, pattern in found:
        for line in lines:
            began = time.perf_counter()
            for _ in pattern.finditer(line):
                pass
            pattern.match(line)
            assert time.perf_counter() - began < SECONDS, (name, line[:40])


@given(
    st.text(st.sampled_from(" 0.,|`_-:='\"[{}]atrinsedbpv"), max_size=LINE_CHARACTERS),
    st.sampled_from(STARTS),
)
def test_a_line_is_read_soon_whatever_it_says(text: str, start: str) -> None:
    began = time.perf_counter()
    list(figures_in(start + text))
    read_log("x.log", start + text)
    for at in range(0, len(text), 100):
        integer_after(text, at)
        seconds_at(text, at)
    assert time.perf_counter() - began < SECONDS


def test_a_readme_with_rows_that_never_end_is_checked_soon(judge: Judge) -> None:
    rows = "\n".join(
        "| `val_bpb` | " + unit * (3_900 // len(unit))
        for unit in (" ", "`", "0.", "0", "| ", "*")
        for _ in range(50)
    )
    began = time.perf_counter()
    judge(
        README__md=rows + "\nval_bpb 1.2345\n",
        train__log=rows.replace("`val_bpb`", "total submission size train_time: seed eval_time"),
    )
    assert time.perf_counter() - began < 5 * SECONDS


def test_json_with_many_keys_is_read_soon(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({str(index): 1 for index in range(50_000)}).replace('"49999"', '"5"'))
    began = time.perf_counter()
    with pytest.raises(UnreadableError, match="'5' occurs twice"):
        read_json_object(path)
    assert time.perf_counter() - began < 5 * SECONDS


def test_a_log_with_many_seeds_and_a_json_with_many_is_checked_soon(judge: Judge) -> None:
    began = time.perf_counter()
    found = judge(
        {"seed_results": {str(seed): {"val_bpb": 1.2345} for seed in range(5_000)}},
        train__log="".join(f"seed:{seed}\n" for seed in range(5_000)) + os.urandom(9).hex(),
    )
    assert time.perf_counter() - began < 10 * SECONDS
    assert found["seeds"][0] == "pass"
