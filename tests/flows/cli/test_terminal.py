"""What people read: text stays text, whatever stands in it."""

import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from flows.cli import live, terminal
from flows.cli.main import app
from schemas.submission import RuleResult
from stages.store.housekeeping import Unneeded

HOSTILE = "[/b][red]:bug: \x1b]0;PWNED\x07"
SHOWN = r"[/b][red]:bug: \x1b]0;PWNED\x07"


@pytest.fixture(params=[False, True])
def console(request: pytest.FixtureRequest) -> Console:
    """As `make_console` makes it, and one that would read markup: the tables must not count on the
    console.
    """
    return Console(
        file=io.StringIO(),
        width=300,
        markup=request.param,
        emoji=request.param,
        force_terminal=True,
        color_system=None,
    )


def _said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_every_table_shows_text_as_it_is(console: Console, tmp_path: Path, smoke_run: Any) -> None:
    row = {"variant": HOSTILE, "finding": HOSTILE, HOSTILE: HOSTILE}
    entry = {"name": HOSTILE, "run_id": "1", "state": HOSTILE, "started": "", "fits": False}
    terminal.print_comparison(console, HOSTILE, [row])
    terminal.print_ablation(console, HOSTILE, [row])
    terminal.print_seeds(console, HOSTILE, [row], [f"**{HOSTILE}**"])
    terminal.print_runs(console, [entry])
    terminal.print_rules(console, HOSTILE, [RuleResult(rule="size", verdict="fail", reason=HOSTILE)])
    terminal.print_unneeded(console, [Unneeded(tmp_path / HOSTILE, 1, HOSTILE)], tmp_path, removed=False)
    terminal.print_server_run(
        console, {**entry, "flow": HOSTILE, "message": HOSTILE}, [{"stage": HOSTILE, "message": HOSTILE}]
    )
    terminal.print_report(console, smoke_run.report.derive(name=HOSTILE), tmp_path / HOSTILE, techniques=True)
    said = _said(console)
    assert said.count(SHOWN) == 5 + 5 + 6 + 2 + 2 + 2 + 6 + 3
    assert "\x1b" not in said
    assert "\x07" not in said
    assert "🐛" not in said


def test_tables_without_rows_have_their_heads(console: Console, tmp_path: Path) -> None:
    terminal.print_runs(console, [])
    terminal.print_rules(console, "folder", [])
    terminal.print_unneeded(console, [], tmp_path, removed=True)
    for head in ("quantized", "verdict", "path in the store"):
        assert head in _said(console)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_log_lines_show_text_as_it_is(is_terminal: bool) -> None:
    console = Console(
        file=io.StringIO(), width=200, markup=False, force_terminal=is_terminal, color_system=None
    )
    with live.log_to(console):
        logging.getLogger("stages").info("reads %s", HOSTILE)
    assert SHOWN in _said(console)
    assert "\x07" not in _said(console)


@pytest.mark.parametrize("title", ["[/b]", "[red]", ":bug:", "\x1b[2J"])
def test_describe_shows_a_value_as_it_is(title: str) -> None:
    answer = CliRunner().invoke(app, ["describe", "smoke", "--set", f"publish.title={title}"])
    assert answer.exit_code == 0, answer.output
    assert title.replace("\x1b", r"\x1b") in answer.output
    assert "\x1b[2J" not in answer.output


def test_a_folder_whose_name_looks_like_markup_is_checked(tmp_path: Path) -> None:
    folder = tmp_path / "a[" / "x]"
    folder.mkdir(parents=True)
    answer = CliRunner().invoke(app, ["check", str(folder)])
    assert answer.exit_code == 1
    assert "a[/x]" in answer.output


def test_errors_and_json_cannot_steer_the_terminal() -> None:
    refused = CliRunner().invoke(app, ["describe", "smoke", "--set", "publish.\x1b[2Jtitle=x"])
    assert refused.exit_code == 2
    assert r"publish.\x1b[2Jtitle" in refused.output
    told = CliRunner().invoke(app, ["describe", "smoke", "--json", "--set", "publish.title=\x9b2J"])
    assert "\x9b" not in told.output
    [title] = [
        info["value"] for info in json.loads(told.output)["settings"] if info["name"] == "publish.title"
    ]
    assert title == "\x9b2J"
