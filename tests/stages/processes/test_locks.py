"""Locks keep processes apart, wait no longer than the run that waits, and leave nothing behind.

Real processes throughout.
"""

import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from schemas.errors import StageError
from schemas.stages import STAGES
from stages.processes.locks import holder, is_free, try_lock, waiting_lock
from stages.processes.stopping import Stopping
from stages.store.store import Store

FORK = multiprocessing.get_context("fork")


def wait(path: Path) -> None:
    with waiting_lock(path, "train", "which makes the same result"):
        pass


@pytest.mark.parametrize("what", ["a result", "the store"])
def test_waiting_for_a_lock_ends_when_the_run_is_stopped(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "stages")
    first = Store(tmp_path)
    with ThreadPoolExecutor(1) as pool, first.lock(STAGES["train"], "k" * 64), first.alone() as alone:
        assert alone
        work = (
            (lambda: wait(tmp_path / "locks" / f"train-{'k' * 32}.lock"))
            if what == "a result"
            else lambda: Store(tmp_path)
        )
        stop = Stopping()
        waiting = pool.submit(stop.wrap(work))
        while "waiting for process" not in caplog.text:
            time.sleep(0.01)
        assert not waiting.done()
        stop.stop_all()
        with pytest.raises(StageError, match="stopped together with the run"):
            waiting.result(timeout=30)


def test_who_is_waited_for_is_said_once_and_the_lock_is_taken_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "stages")
    path = tmp_path / "lock"
    file = try_lock(path)
    assert file is not None
    assert try_lock(path) is None
    assert not is_free(path)
    thread = threading.Thread(target=wait, args=(path,))
    thread.start()
    time.sleep(0.7)
    assert thread.is_alive()
    pid = holder(path)
    file.close()
    thread.join(30)
    assert not thread.is_alive()
    assert caplog.messages == [f"train: waiting for process {pid}, which makes the same result"]


def count_up(path: Path, counter: Path, times: int) -> None:
    for _ in range(times):
        with waiting_lock(path, "count", "which counts"):
            number = int(counter.read_text())
            time.sleep(0.001)
            counter.write_text(str(number + 1))


def test_a_lock_keeps_processes_apart_though_each_removes_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.processes.locks._POLL_SECONDS", 0.0005)
    path, counter = tmp_path / "lock", tmp_path / "counter"
    counter.write_text("0")
    processes = [FORK.Process(target=count_up, args=(path, counter, 50)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert counter.read_text() == "200"
    assert list(tmp_path.iterdir()) == [counter]


def test_a_closed_store_is_in_use_no_longer(tmp_path: Path) -> None:
    first = Store(tmp_path)
    with Store(tmp_path) as second, first.alone() as alone:
        assert not alone
    with first.alone() as alone:
        assert alone
    assert second.root == tmp_path
