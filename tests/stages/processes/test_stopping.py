"""A stop asked for by the main thread ends what other threads wait for, and is no error that is tried
again.
"""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from queue import Queue

import psutil
import pytest

from schemas.compute_settings import ComputeSettings
from schemas.errors import StageError
from stages.processes.launch import run_child
from stages.processes.stopping import Stopping, stopping

TELLS_ITS_PID = "import os, time; print('@progress', os.getpid(), 0, 'x', flush=True); time.sleep(600)"


def test_a_stop_ends_the_children_of_all_threads_and_later_ones() -> None:
    pids = Queue[int]()

    def sleep_long() -> None:
        command = [sys.executable, "-c", TELLS_ITS_PID]
        run_child(command, ComputeSettings(), lambda pid, *_: pids.put(int(pid)), None)

    stop = Stopping()
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(stop.wrap(sleep_long)) for _ in range(2)]
        children = [pids.get(timeout=60) for _ in running]
        stop.stop_all()
        assert not any(_lives(pid) for pid in children)
        late = pool.submit(stop.wrap(sleep_long))
        for future in [*running, late]:
            with pytest.raises(StageError, match="its run was stopped"):
                future.result(timeout=60)
    assert pids.empty()  # the late one was ended before it did anything


def _lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_child_that_ignores_sigterm_is_ended_too_and_so_is_one_that_begins_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stages.processes.stopping.GRACE_SECONDS", 0.5)
    monkeypatch.setattr("stages.processes.launch.TERM_GRACE_SECONDS", 0.5)
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('@progress 1 "
        "1 x', flush=True); time.sleep(600)"
    )
    stop, ready = Stopping(), threading.Event()

    def run() -> None:
        run_child([sys.executable, "-c", deaf], ComputeSettings(), lambda *_: ready.set(), None)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(stop.wrap(run))
        assert ready.wait(60)
        stop.stop_all()
        late = pool.submit(stop.wrap(run))
        for future in (running, late):
            with pytest.raises(StageError, match="its run was stopped"):
                future.result(timeout=60)


def test_other_work_is_not_touched() -> None:
    Stopping().stop_all()
    stopping.get().check()
