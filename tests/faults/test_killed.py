"""Killed anywhere: SIGKILL to every process of a run at random moments, and the same command again, until
it is done.
"""

import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.stages import STAGES
from tests.faults.chain import CHECKPOINT_SECONDS
from tests.faults.conftest import STEPS, Undisturbed
from tests.faults.harness import FULL, Struck, finish_chain, made, start_chain, start_fairway

pytestmark = pytest.mark.faults

KILLS = (
    {
        "tokenize_corpus": 2,
        "train": 13,
        "merge": 4,
        "quantize": 3,
        "package": 2,
        "check_size": 1,
        "evaluate": 4,
        "publish": 3,
    }
    if FULL
    else {"train": 1}
)
LAST_STRUCK = list(KILLS)[-1] if FULL else "package"
# A kill may come while the checkpoint that is due is being written, or in the step before it.
WRITING_SECONDS = 0.5


class Strikes:
    """Kills of one chain in one store, and what they cost."""

    def __init__(self, store: Path, logs: Path, generator: random.Random) -> None:
        self.store, self._logs, self._generator = store, logs, generator
        self.hit, self.finished, self.lost = Counter[str](), Counter[str](), list[float]()

    def kill_in(self, stage: str, longest: float) -> bool:
        """Start, and kill everything at a random moment of the stage; False when the stage had been
        finished before.
        """
        run = start_chain(self.store, self._logs, STEPS, until=LAST_STRUCK)
        run.wait_for(lambda: _begun(run) == stage or _is_done(run))
        if (
            stage == "train" and self.hit[stage] % 3
        ):  # two of three while it makes steps, the others while it starts
            before = _steps(self.store)
            run.wait_for(lambda: _steps(self.store) > before)
            longest = 2.5
        time.sleep(self._generator.uniform(0, longest))
        run.kill_at_once()
        self.finished.update(made(run.events()))
        if _is_done(run):
            return False
        self.hit[_begun(run) or "between two stages"] += 1
        if _begun(run) == "train" and (seconds := _training_lost(self.store)) is not None:
            self.lost.append(seconds)
        return stage not in self.finished

    def finish(self) -> bytes:
        """Run to the end; the blob."""
        events = finish_chain(self.store, self._logs, STEPS, until=LAST_STRUCK)
        self.finished.update(made(events))
        return Path(events[-1]["blob"]).read_bytes()


def _begun(run: Struck) -> str | None:
    """The stage at work."""
    last = (run.events() or [{"event": "nothing"}])[-1]
    return last["stage"] if last["event"] == "begins" else None


def _is_done(run: Struck) -> bool:
    return any(event["event"] == "done" for event in run.events())


def _steps(store: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in store.glob("work/train/*/metrics.jsonl"))


def _training_lost(store: Path) -> float | None:
    """Seconds of training since the newest checkpoint; None when no step was made yet."""
    rows = [
        line
        for path in store.glob("work/train/*/metrics.jsonl")
        for line in path.read_text().split("\n")[:-1]
    ]
    if not rows:
        return None
    checkpoints = [
        json.loads(path.read_text())["seconds"] for path in store.glob("work/train/*/checkpoints/*.json")
    ]
    return json.loads(rows[-1])["seconds"] - max(checkpoints, default=0.0)


def test_killed_anywhere_and_started_again(
    undisturbed: Undisturbed, tmp_path: Path, figure: Callable[..., None]
) -> None:
    generator = random.Random(20261123)
    strikes = [Strikes(tmp_path / "store", tmp_path, generator)]
    for stage, times in KILLS.items():
        for _ in range(times):
            if not strikes[-1].kill_in(stage, 5.0 if stage == "train" else undisturbed.seconds(stage)):
                break
    blobs = [strikes[-1].finish()]
    # A stage that was finished before it was struck often enough: go on in a store where it is not made yet.
    for stage, times in KILLS.items() if FULL else ():
        while sum((one.hit for one in strikes), Counter())[stage] < times - 1 and len(strikes) < 9:
            store = tmp_path / f"store {len(strikes)}"
            shutil.copytree(undisturbed.store, store)
            for later in list(STAGES)[list(STAGES).index(stage) :]:
                shutil.rmtree(store / "stages" / later)
            strikes.append(Strikes(store, tmp_path, generator))
            while strikes[-1].kill_in(stage, undisturbed.seconds(stage)) and strikes[-1].hit.total() < times:
                pass
            blobs.append(strikes[-1].finish())
    expected = (undisturbed.folder("package") / "package" / "model.fwz").read_bytes()
    same = sum(blob == expected for blob in blobs)
    hit = sum((one.hit for one in strikes), Counter[str]())
    twice = sum(count - 1 for one in strikes for count in one.finished.values() if count > 1)
    lost = [seconds for one in strikes for seconds in one.lost]
    spread = ", ".join(f"{stage} {count}" for stage, count in hit.items())
    done = f"SIGKILL to all processes {hit.total()} times ({spread}), same command until done"
    figure(
        "1",
        done,
        f"blob byte-identical to the undisturbed one in {same} of {len(blobs)} stores",
        same == len(blobs),
    )
    figure(
        "1",
        "finished stages that ran again",
        f"{twice} of {sum(len(one.finished) for one in strikes)}",
        not twice,
    )
    repeated = (
        f"at most {max(lost, default=0):.2f} s in {len(lost)} kills; a checkpoint every "
        f"{CHECKPOINT_SECONDS} s and its writing"
    )
    figure(
        "1",
        "training that a kill cost",
        repeated,
        max(lost, default=0) <= CHECKPOINT_SECONDS + WRITING_SECONDS,
    )
    if FULL:
        assert hit.total() >= 30
        assert hit["train"] >= 10
        assert len(lost) >= 6


@pytest.mark.slow
def test_killed_between_training_and_publishing_no_step_is_repeated(
    tmp_path: Path, figure: Callable[..., None]
) -> None:
    """The result lies whole in the work folder: nothing of it may be thrown away before it is published."""
    short = "train.schedule.max_steps=20"
    run = start_chain(tmp_path / "store", tmp_path, short)
    assert run.wait_for(lambda: list((tmp_path / "store" / "work" / "train").glob("*/metrics.parquet")))
    run.end()
    [event] = [
        event
        for event in finish_chain(tmp_path / "store", tmp_path, short, until="train")
        if event["event"] == "done"
    ]
    figure(
        "1",
        "killed after the last step, before publishing",
        f"went on from step {event['resumed'][-1]} of 20",
        event["resumed"] == [20],
    )


def blob_of(run: Struck) -> bytes:
    assert run.process.wait(300) == 0, run.text()[-3000:]
    report = json.loads(run.output.read_text())
    return (Path(report["package_folder"]) / "model.fwz").read_bytes()


@pytest.mark.slow
def test_the_real_command_killed_with_its_server(
    undisturbed: Undisturbed, tmp_path: Path, figure: Callable[..., None]
) -> None:
    generator = random.Random(7)
    waits = [generator.uniform(5, 35) for _ in range(4)]
    for seconds in waits:
        run = start_fairway(tmp_path / "store", tmp_path / "logs", "--set", STEPS)
        time.sleep(seconds)
        run.end()
    last = start_fairway(tmp_path / "store", tmp_path / "logs", "--set", STEPS)
    same = blob_of(last) == (undisturbed.folder("package") / "package" / "model.fwz").read_bytes()
    at = ", ".join(f"{seconds:.0f}" for seconds in waits)
    figure(
        "1",
        f"`fairway run` and its Prefect server killed, {len(waits)} times (at {at} s)",
        "blob identical" if same else "blob differs",
        same,
    )


@pytest.mark.slow
def test_one_of_two_ranks_killed(tmp_path: Path, figure: Callable[..., None]) -> None:
    options = ("--set", STEPS, "--processes", "2")
    expected = blob_of(start_fairway(tmp_path / "undisturbed", tmp_path / "logs", *options))
    run = start_fairway(tmp_path / "store", tmp_path / "logs", *options)
    assert run.wait_for(lambda: list((tmp_path / "store" / "work" / "train").glob("*/checkpoints/*.json")))
    struck = run.kill(only=lambda pid: _is_rank(pid, 1))
    same = blob_of(run) == expected
    resumed = "going on from the checkpoint" in run.text()
    retried = "Try 2 of" in run.text()
    told = (
        f"{'retried, ' * retried}{'from the checkpoint, ' * resumed}blob {'identical' if same else 'differs'}"
    )
    figure(
        "1",
        f"one of two training ranks killed ({struck} process)",
        told,
        struck == 1 and same and resumed and retried,
    )


def _is_rank(pid: int, rank: int) -> bool:
    try:
        return (
            b"stages.training.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
            and f"\0RANK={rank}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes()
        )
    except (FileNotFoundError, ProcessLookupError):
        return False
