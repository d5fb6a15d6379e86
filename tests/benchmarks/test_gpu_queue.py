"""The queue of GPU runs: a training has its card for itself, and the table has means over seeds."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu_queue import Job, Work, run_all, table

# Stands for gpu_chain: notes when it began and ended, and on which card; the run "bad" fails to train.
PROCESS = """
import json, os, sys, time
given = dict(zip(sys.argv[2::2], sys.argv[3::2]))
began = time.time()
time.sleep(0.3)
note = {"run": given["--run"], "seed": given["--seed"], "until": given["--until"], "began": began,
        "ended": time.time(), "card": os.environ["CUDA_VISIBLE_DEVICES"]}
with open(sys.argv[1], "a") as notes:
    notes.write(json.dumps(note) + "\\n")
sys.exit(given["--run"] == "bad" and given["--until"] == "train")
"""


@pytest.fixture
def done(tmp_path: Path) -> tuple[Work, list[dict]]:
    """Five runs on two cards, one of which fails, and one that shares a training."""
    notes = tmp_path / "notes.jsonl"
    jobs = [Job(run, "1") for run in ("a", "b", "bad", "c", "d")]
    work = Work(jobs, [Job("later", "1")], [sys.executable, "-c", PROCESS, str(notes)], tmp_path)
    run_all(work, ["0", "1"], side_by_side=2)
    return work, [json.loads(line) for line in notes.read_text().splitlines()]


def test_each_run_trains_once_and_then_has_its_later_stages(done: tuple[Work, list[dict]]) -> None:
    work, notes = done
    trained = {note["run"]: note["ended"] for note in notes if note["until"] == "train"}
    finished = {note["run"]: note["began"] for note in notes if note["until"] == "evaluate"}
    assert sorted(trained) == ["a", "b", "bad", "c", "d"]
    assert sorted(finished) == ["a", "b", "c", "d", "later"]
    assert all(finished[run] >= trained[run] for run in "abcd")
    assert finished["later"] >= max(trained.values())
    assert len(work.failed) == 1
    assert work.failed[0].startswith("bad-1 until train: status 1")


def test_nothing_uses_a_card_while_it_trains(done: tuple[Work, list[dict]]) -> None:
    _, notes = done
    for training in (note for note in notes if note["until"] == "train"):
        beside = [
            note
            for note in notes
            if note is not training
            and note["card"] == training["card"]
            and note["began"] < training["ended"]
            and note["ended"] > training["began"]
        ]
        assert beside == []


def test_nothing_begins_after_ctrl_c(tmp_path: Path) -> None:
    notes = tmp_path / "notes.jsonl"
    waiting = "import sys, time; open(sys.argv[1], 'a').write('began\\n'); time.sleep(60)"
    queue = (
        "import sys\nfrom pathlib import Path\nfrom benchmarks.gpu_queue import Job, Work, run_all\n"
        "jobs = [Job(run, '1') for run in 'abcd']\n"
        f"command = [sys.executable, '-c', {waiting!r}, sys.argv[1]]\n"
        "run_all(Work(jobs, jobs, command, Path(sys.argv[1]).parent), ['0', '1'], 2)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", queue, str(notes)],
        start_new_session=True,
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not notes.exists() or len(notes.read_text().splitlines()) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=30)[1]
    assert notes.read_text() == "began\nbegan\n"


def test_the_table_has_the_mean_and_the_deviation_of_each_run() -> None:
    row = {
        "steps": 1000,
        "ms_a_step": 50.0,
        "bpb_merged": 1.08,
        "bpb_sliding": None,
        "total_bytes": 15_990_000,
    }
    rows = [
        row | {"run": "ours", "seed": 1, "after": "train"},
        row | {"run": "ours", "seed": 1, "bpb_quantized": 9.0},
        row | {"run": "ours", "seed": 1, "bpb_quantized": 1.0, "bpb_by_context": {"4096": 0.9}},
        row
        | {"run": "ours", "seed": 2, "bpb_quantized": 1.2, "bpb_by_context": {"4096": 1.0}, "steps": 1010},
        row | {"run": "other", "seed": 1, "bpb_quantized": 1.5, "error": "it ended early"},
        row | {"run": "third", "seed": 3, "bpb_quantized": 1.5},
    ]
    ours, third = table(rows).splitlines()[2:]
    assert ours == (
        "| ours | 1, 2 | 1,005 ± 7 | 50.0 ± 0.0 | 1.0800 ± 0.0000 | 1.1000 ± 0.1414 |  | 15,990,000 ± 0 "
        "| 0.9500 ± 0.0707 |"
    )
    assert third == "| third | 3 | 1,000 | 50.0 | 1.0800 | 1.5000 |  | 15,990,000 |  |"


def test_a_run_that_is_not_there_cannot_be_left_out(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_queue", "--run", "a: smoke", "--seeds", "1,2"]
    command += ["--json", str(tmp_path / "rows.jsonl"), "--without", "a-3"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert said.returncode == 2
    assert "--without a-3: the runs are a-1, a-2" in said.stderr
