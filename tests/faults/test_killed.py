"""Killed anywhere: SIGKILL to every process of a run at random moments, and the same command again, until it is done."""

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.chain import CHECKPOINT_SECONDS
from tests.faults.conftest import STEPS, Undisturbed
from tests.faults.harness import FULL, Struck, finish_chain, made, start, start_chain

KILLS = (
    {"tokenize_corpus": 3, "train": 13, "merge": 4, "quantize": 3, "package": 2, "check_size": 2, "evaluate": 4, "publish": 3}
    if FULL
    else {"tokenize_corpus": 1, "train": 2, "evaluate": 1}
)
# A kill may come while the checkpoint that is due is being written, or in the step before it.
WRITING_SECONDS = 0.5


def begins(run: Struck, stage: str) -> bool:
    return {"stage": stage, "event": "begins"} in run.events()


def training_lost(work: Path) -> float | None:
    """Seconds of training since the newest checkpoint; None when no step was made yet."""
    rows = [line for path in work.glob("*/metrics.jsonl") for line in path.read_text().split("\n")[:-1]]
    if not rows:
        return None
    checkpoints = [json.loads(path.read_text())["seconds"] for path in work.glob("*/checkpoints/*.json")]
    return json.loads(rows[-1])["seconds"] - max(checkpoints, default=0.0)


def test_killed_anywhere_and_started_again(undisturbed: Undisturbed, tmp_path: Path, figure: Callable[..., None]) -> None:
    generator = random.Random(20261123)
    store, hit, processes = tmp_path / "store", Counter[str](), 0
    lost, finished = [], []
    for stage, times in KILLS.items():
        for _ in range(times):
            run = start_chain(store, tmp_path, STEPS)
            if not run.wait_for(lambda run=run, stage=stage: begins(run, stage)):
                break
            longest = 6.5 if stage == "train" else undisturbed.seconds(stage)
            time.sleep(generator.uniform(0, longest))
            processes += run.kill()
            run.end()
            events = run.events()
            finished += made(events)
            if events[-1]["event"] == "done":
                break
            hit[events[-1]["stage"]] += 1
            if events[-1]["stage"] == "train" and (seconds := training_lost(store / "work" / "train")) is not None:
                lost.append(seconds)
    events = finish_chain(store, tmp_path, STEPS)
    finished += made(events)
    blob = Path(events[-1]["blob"])
    assert blob.read_bytes() == (undisturbed.folder("package") / "package" / "model.fwz").read_bytes()
    twice = [stage for stage, count in Counter(finished).items() if count > 1]
    spread = ", ".join(f"{stage} {count}" for stage, count in hit.items())
    figure("1", f"SIGKILL to all processes, {hit.total()} times ({spread})", f"blob sha256 {events[-1]['sha256'][:12]} = undisturbed", True)
    figure("1", "stages that ran again after they had finished", f"{len(twice)} of {len(set(finished))}", not twice)
    limit = CHECKPOINT_SECONDS + WRITING_SECONDS
    repeated = f"at most {max(lost, default=0):.2f} s in {len(lost)} kills; a checkpoint every {CHECKPOINT_SECONDS} s + its writing"
    figure("1", "training repeated after a kill", repeated, max(lost, default=0) <= limit)
    if FULL:
        assert hit.total() >= 30
        assert hit["train"] >= 10


def test_killed_between_training_and_publishing_no_step_is_repeated(tmp_path: Path, figure: Callable[..., None]) -> None:
    """The result lies whole in the work folder: nothing of it may be thrown away before it is published."""
    short = "train.schedule.max_steps=20"
    run = start_chain(tmp_path / "store", tmp_path, short)
    assert run.wait_for(lambda: list((tmp_path / "store" / "work" / "train").glob("*/metrics.parquet")))
    run.end()
    [event] = [event for event in finish_chain(tmp_path / "store", tmp_path, short) if event["event"] == "done"]
    figure("1", "killed after the last step, before publishing", f"went on from step {event['resumed'][-1]} of 20", event["resumed"] == [20])


def fairway(store: Path, logs: Path, *options: str) -> Struck:
    return start(["-m", "flows.cli", "run", "--preset", "smoke", "--set", STEPS, "--store", str(store), "--json", *options], logs)


def blob_of(run: Struck) -> bytes:
    assert run.process.wait(300) == 0, run.text()[-3000:]
    report = json.loads(run.output.read_text())
    return (Path(report["package_folder"]) / "model.fwz").read_bytes()


@pytest.mark.slow
def test_the_real_command_killed_with_its_server(undisturbed: Undisturbed, tmp_path: Path, figure: Callable[..., None]) -> None:
    generator = random.Random(7)
    waits = [generator.uniform(8, 45) for _ in range(5)]
    for seconds in waits:
        run = fairway(tmp_path / "store", tmp_path / "logs", "--checkpoint-every", "0.5")
        time.sleep(seconds)
        run.end()
    last = fairway(tmp_path / "store", tmp_path / "logs", "--checkpoint-every", "0.5")
    same = blob_of(last) == (undisturbed.folder("package") / "package" / "model.fwz").read_bytes()
    at = ", ".join(f"{seconds:.0f}" for seconds in waits)
    figure("1", f"`fairway run` and its Prefect server killed, {len(waits)} times (at {at} s)", "blob identical" if same else "blob differs", same)


@pytest.mark.slow
def test_one_of_two_ranks_killed(tmp_path: Path, figure: Callable[..., None]) -> None:
    options = ("--checkpoint-every", "0.5", "--processes", "2")
    expected = blob_of(fairway(tmp_path / "undisturbed", tmp_path / "logs", *options))
    run = fairway(tmp_path / "store", tmp_path / "logs", *options)
    assert run.wait_for(lambda: list((tmp_path / "store" / "work" / "train").glob("*/checkpoints/*.json")))
    struck = run.kill(only=lambda pid: _is_rank(pid, 1))
    same = blob_of(run) == expected
    resumed = "going on from the checkpoint" in run.text()
    retried = "Try 2 of" in run.text()
    told = f"{'retried, ' * retried}{'from the checkpoint, ' * resumed}blob {'identical' if same else 'differs'}"
    figure("1", f"one of two training ranks killed ({struck} process)", told, struck == 1 and same and resumed and retried)


def _is_rank(pid: int, rank: int) -> bool:
    try:
        return b"train_rank" in Path(f"/proc/{pid}/cmdline").read_bytes() and f"\0RANK={rank}\0".encode() in Path(
            f"/proc/{pid}/environ"
        ).read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
