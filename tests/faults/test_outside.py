"""Nobody gets in and nothing gets out: who listens where, what names can do, where files are written."""

import ast
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Interrupted
from tests.faults.harness import FULL, LAST, ROOT, start_chain

pytestmark = pytest.mark.faults


def test_a_run_with_two_ranks_listens_on_loopback_only(
    interrupted: Callable[[signal.Signals], Interrupted], figure: Callable[..., None]
) -> None:
    sockets = interrupted(signal.SIGINT).sockets
    outside = [address for address, _ in sockets if address not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")]
    told = f"{len(sockets)} sockets, {len(outside)} of them reachable from outside {outside or ''}"
    figure("9", "what a run with its server and two ranks listens on", told, bool(sockets) and not outside)


def test_names_never_reach_a_shell_and_nothing_is_written_elsewhere(
    tmp_path: Path, figure: Callable[..., None]
) -> None:
    """The text lies under names that a shell would run; home, temporary folder and working folder are
    looked at afterwards.
    """
    folders = {name: tmp_path / name for name in ("home", "tmp", "work")}
    for folder in folders.values():
        folder.mkdir()
    texts = folders["work"] / "a b; touch owned; $(touch owned) `touch owned` | x"
    texts.mkdir()
    for number in range(30):
        (texts / f"'{number}\" && touch owned #.txt").write_text(
            f"Words of document {number}, and some more of them. " * 60
        )
    before = _snapshot(folders["work"]) | _snapshot(ROOT)
    overrides = (
        "tokenize.corpus.kind=files",
        f'tokenize.corpus.paths=["{texts}/*.txt"]',
        "publish.title=$(touch owned); `touch owned`",
    )
    run = start_chain(
        tmp_path / "store; touch owned", tmp_path / "logs", "train.schedule.max_steps=20", *overrides,
        until=LAST if FULL else "package",
        HOME=str(folders["home"]), TMPDIR=str(folders["tmp"]), PYTHONDONTWRITEBYTECODE="1",
    )  # fmt: skip
    assert run.process.wait(200) == 0, run.text()[-2000:]
    after = _snapshot(folders["work"]) | _snapshot(ROOT)
    left = [path for name in ("home", "tmp") for path in folders[name].rglob("*") if path.is_file()]
    changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    owned = list(tmp_path.rglob("owned"))

    def told_of(paths: list[Path]) -> str:
        return f" ({', '.join(map(str, paths[:3]))})" if paths else ""

    told = (
        f"{len(owned)} commands run, {len(changed)} source files changed{told_of(changed)}, "
        f"{len(left)} files in home and temporary folder{told_of(left)}"
    )
    figure(
        "9",
        "corpus, store and title named `; touch owned $(touch owned)`",
        told,
        not owned and not changed and not left,
    )


def test_no_shell_in_the_source(figure: Callable[..., None]) -> None:
    found = []
    for folder in ("stages", "schemas", "flows", "presets"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    shell = any(keyword.arg == "shell" for keyword in node.keywords)
                    if shell or ast.unparse(node.func) in (
                        "os.system",
                        "os.popen",
                        "subprocess.getoutput",
                        "subprocess.getstatusoutput",
                    ):
                        found.append(f"{path.name}:{node.lineno}")
    figure("9", "calls of a shell in the source", f"{len(found)} {found or ''}", not found)


def _snapshot(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of every file that is not a tool's own."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not {
            ".venv",
            ".git",
            "__pycache__",
            ".pytest_cache",
            ".hypothesis",
            ".mypy_cache",
            ".ruff_cache",
        } & {*path.parts}:
            status = path.stat()
            found[path] = (status.st_size, status.st_mtime_ns)
    return found
