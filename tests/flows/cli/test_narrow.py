"""Tables on terminals of any width: no word is cut, and nothing is lost."""

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from flows.cli.live import is_screen
from flows.cli.narrow import FittingConsole
from flows.cli.terminal import rows_table

ROOT = Path(__file__).parents[3]
ROWS = [
    {
        "stage": "tokenize_corpus",
        "seconds": "0.6",
        "state": "Cached (took 123.4 s)",
        "key": "b45b238bdc75",
        "note": "",
    },
    {
        "stage": "train",
        "seconds": "1,234.5",
        "state": "Completed",
        "key": "cc0176c60430",
        "note": "a much longer sentence that has to wrap",
    },
]


def printed(width: int, *objects: object) -> str:
    file = io.StringIO()
    FittingConsole(file=file, width=width, highlight=False).print(*objects)
    return file.getvalue()


def test_a_table_that_fits_is_a_table() -> None:
    assert "━" in printed(100, rows_table("Stages", ROWS, {"seconds"}))


@pytest.mark.parametrize("width", [20, 40, 60])
def test_a_table_that_does_not_fit_becomes_lists_in_which_no_word_is_cut(width: int) -> None:
    shown = printed(width, rows_table("Stages", ROWS, {"seconds"}))
    assert "…" not in shown
    assert "━" not in shown or width == 60
    assert max(len(line) for line in shown.splitlines()) <= width
    words = set(shown.replace("│", " ").split())
    for row in ROWS:
        assert {word for value in row.values() for word in value.split()} <= words


def test_empty_cells_are_left_out_and_names_are_not_read_as_markup() -> None:
    shown = printed(
        20, rows_table("Stages", [{"name": "[/b] a name", "note": "", "long value": "x" * 15}], set())
    )
    assert [line.strip() for line in shown.splitlines()] == ["Stages", "[/b] a name", "long value:", "x" * 15]


def test_headers_that_a_table_does_not_show_are_not_shown_in_lists() -> None:
    table = Table(show_header=False)
    table.add_column("figure")
    table.add_column("value")
    table.add_row(Text("parameters"), "x" * 18)
    assert printed(24, table).split() == ["parameters", "x" * 18]


def test_a_file_with_forced_colours_is_no_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = FittingConsole(file=io.StringIO())
    assert console.is_terminal
    assert not is_screen(console)


def test_the_list_of_runs_is_whole_on_a_terminal_of_forty_columns(tmp_path: Path) -> None:
    code = (
        "from flows.cli.base import make_console\nfrom flows.cli.terminal import print_runs\n"
        "entry = {'name': 'smoke-seed1337-6a6a11ef', 'run_id': '1f938cc1-2', 'state': 'Completed', "
        "'started': '2026-11-25T17:49:52+00:00',"
        " 'val_bpb_quantized': 3.72348, 'val_bpb_quantized_sliding': 3.71988, 'total_bytes': "
        "212934, 'fits': True, 'seconds': 23.8}\n"
        "print_runs(make_console(), [entry])"
    )
    ours, theirs = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=theirs,
        env={**kept, "COLUMNS": "40", "LINES": "24", "TERM": "xterm"},
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # how a terminal says that the other side has gone
        pass
    os.close(ours)
    assert process.wait(60) == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())
    assert {"smoke-seed1337-6a6a11ef", "1f938cc1", "Completed", "3.72348", "212,934", "23.8"} <= set(
        plain.split()
    )
    assert max(len(line) for line in plain.splitlines()) <= 40
