"""Stages from the shell, without Prefect."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.stages import STAGES


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stages", *arguments], capture_output=True, text=True, cwd=cwd
    )


@pytest.mark.parametrize("stage", list(STAGES))
def test_every_stage_says_how_it_is_run_by_hand(stage: str) -> None:
    said = run(stage, "--help")
    assert said.returncode == 0, said.stderr
    assert "--spec" in said.stdout
    for name in STAGES[stage].inputs:
        assert name in said.stdout or name == "manifest"


def test_a_stage_by_hand_leaves_its_record_and_is_served_the_second_time(tmp_path: Path) -> None:
    spec = {
        "corpus": {"kind": "files", "paths": [str(tmp_path / "*.txt")]},
        "tokenizer": {"vocab_size": 300},
        "split": {"kind": "first_documents", "num_val_documents": 1},
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(f"{name}: the quick brown fox jumps over the lazy dog. " * 40)
    command = ("tokenize_corpus", "--spec", str(tmp_path / "spec.json"), "--store", str(tmp_path / "store"))
    first, second = run(*command), run(*command)
    assert first.returncode == 0, first.stderr
    record = json.loads(Path(first.stdout.strip()).read_text())
    assert record["result"]["val"]["num_documents"] == 1
    assert second.stdout == first.stdout
    assert "found in the store" in second.stderr


@pytest.mark.parametrize(
    ("spec", "inputs", "message"),
    [
        ('{"zstd_levle": 3}', [], "zstd_levle"),
        ("{broken", [], "spec.json"),
        ("{}", [], "--input: give merged="),
        (
            "{}",
            ["--input", "merged=nowhere.json", "--input", "tokenized=nowhere.json"],
            "--input merged = nowhere.json: cannot be read",
        ),
        ("{}", ["--input", "merge=x"], "--input: give merged="),
    ],
)
def test_bad_input_is_one_clear_message_and_exit_2(
    tmp_path: Path, spec: str, inputs: list[str], message: str
) -> None:
    (tmp_path / "spec.json").write_text(spec)
    said = run("quantize", "--spec", str(tmp_path / "spec.json"), "--store", str(tmp_path / "store"), *inputs)
    assert said.returncode == 2
    assert message in said.stderr
    assert "Traceback" not in said.stderr
