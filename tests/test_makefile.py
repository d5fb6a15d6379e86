"""`make run` on a machine without .venv: what is said before anything is installed, and what is run.

Nothing is downloaded.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAND_IN = """#!/bin/sh
# Python, and what a venv and pip leave, as far as the Makefile can tell.
echo "ran: $*"
case "$*" in
*"-m venv"*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$0" "$3/bin/fairway" ;;
*"-m pip"*) exit "${PIP_STATUS:-0}" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout on a path with a space, and a stand-in for Python beside it."""
    folder = tmp_path / "a checkout"
    folder.mkdir()
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    python = tmp_path / "stand in"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    return folder


def make(folder: Path, target: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "FAIRWAY"))}
    command = ["make", target, f"PYTHON={folder.parent / 'stand in'}"]
    return subprocess.run(
        command, cwd=folder, env=clean | environment, capture_output=True, text=True, check=False
    )


def test_sizes_and_times_are_said_before_pip_starts_and_pip_is_not_silenced(checkout: Path) -> None:
    said = make(checkout, "run")
    assert said.returncode == 0, said.stderr
    lines = said.stdout.splitlines()
    about = next(number for number, line in enumerate(lines) if "Installing into" in line)
    began = next(number for number, line in enumerate(lines) if line.startswith("ran: -m venv"))
    text = "\n".join(lines[about:began])
    assert all(word in text for word in ("3.0 GB from PyPI", "0.5 GB", "PIP_EXTRA_INDEX_URL=", "minutes"))
    assert (
        "ran: -m pip install --requirement ./requirements.lock" in lines
    )  # without --quiet: pip shows its progress
    assert lines[-1] == "ran: run --preset demo"


def test_the_second_time_nothing_is_installed_and_nothing_said(checkout: Path) -> None:
    make(checkout, "run")
    assert make(checkout, "run").stdout.splitlines() == ["ran: run --preset demo"]


def test_an_installation_that_failed_is_tried_again(checkout: Path) -> None:
    failed = make(checkout, "run", PIP_STATUS="1")
    assert failed.returncode != 0
    assert "ran: run" not in failed.stdout
    assert "Installing into" in make(checkout, "run").stdout
