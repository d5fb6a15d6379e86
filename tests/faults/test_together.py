"""Two runs at once, a holder that is killed, odd paths, a moved store."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.stages import STAGES
from tests.faults.conftest import STEPS, Undisturbed
from tests.faults.harness import FULL, finish_chain, made, start_chain

pytestmark = pytest.mark.faults

BLOB = "package"  # the stage that leaves the blob; those after it change none of it


@pytest.mark.slow
def test_two_equal_runs_train_once(
    undisturbed: Undisturbed, tmp_path: Path, figure: Callable[..., None]
) -> None:
    store = tmp_path / "ein [Lager] für 模型*"
    both = [start_chain(store, tmp_path, STEPS, until=BLOB) for _ in range(2)]
    statuses = [run.process.wait(300) for run in both]
    times = sum(made(run.events()).count("train") for run in both)
    waited = sum("waiting for process" in run.text() for run in both)
    same = {run.events()[-1].get("sha256") for run in both} == {undisturbed.sha256}
    told = f"trained {times} time, {waited} waited and was served, blobs {'identical' if same else 'differ'}"
    done = "two equal runs started together, store on a path with spaces and letters beyond ASCII"
    figure("4", done, told, statuses == [0, 0] and times == 1 and same)


def test_the_holder_of_the_lock_is_killed(
    undisturbed: Undisturbed, tmp_path: Path, figure: Callable[..., None]
) -> None:
    store = tmp_path / "store"
    holder = start_chain(store, tmp_path, STEPS, until=BLOB)
    assert holder.wait_for(lambda: list(store.glob("work/train/*/checkpoints/*.json")))
    waiting = start_chain(store, tmp_path, STEPS, until=BLOB)
    assert waiting.wait_for(lambda: "train: waiting for process" in waiting.text())
    holder.end()
    status = waiting.process.wait(300)
    same = waiting.events()[-1].get("sha256") == undisturbed.sha256
    start = "from its checkpoint" if waiting.events()[-1]["resumed"] else "from the start"
    told = f"the waiting run took over {start}, blob identical: {same}"
    figure(
        "4",
        "two equal runs, the one with the lock killed while it trains",
        told,
        status == 0 and same and bool(waiting.events()[-1]["resumed"]),
    )


@pytest.mark.slow
def test_two_different_runs_do_not_disturb_each_other(
    undisturbed: Undisturbed, tmp_path: Path, figure: Callable[..., None]
) -> None:
    other = (STEPS, "train.seed=7")
    together = [
        start_chain(tmp_path / "store", tmp_path, *overrides, until=BLOB) for overrides in ((STEPS,), other)
    ]
    statuses = [run.process.wait(400) for run in together]
    blobs = [run.events()[-1].get("sha256") for run in together]
    expected = [
        undisturbed.sha256,
        finish_chain(tmp_path / "alone", tmp_path, *other, until=BLOB)[-1]["sha256"] if FULL else blobs[1],
    ]
    figure(
        "4",
        "two different runs at once in one store",
        f"both blobs as alone: {blobs == expected}",
        statuses == [0, 0] and blobs == expected,
    )


def test_a_moved_store_serves_everything(
    copied: Path, undisturbed: Undisturbed, tmp_path: Path, figure: Callable[..., None]
) -> None:
    moved = tmp_path / "anderswo" / "магазин"
    moved.parent.mkdir()
    shutil.move(copied, moved)
    events = finish_chain(moved, tmp_path, STEPS)
    again = made(events)
    figure(
        "4",
        "a store moved to another path",
        f"{len(again)} of {len(STAGES)} stages ran again {again or ''}",
        not again,
    )
