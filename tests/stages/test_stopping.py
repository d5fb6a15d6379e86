"""A stop asked for by the main thread ends what other threads wait for, and is no error that is tried again."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from schemas.errors import StageError
from schemas.settings import ComputeSettings
from stages.launch import run_child
from stages.stopping import Stopping, stopping


def sleep_long() -> None:
    run_child([sys.executable, "-c", "import time; print('here', flush=True); time.sleep(600)"], ComputeSettings(), lambda *_: None, None)


def test_a_stop_ends_the_children_of_all_threads_and_later_ones() -> None:
    stop = Stopping()
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(stop.here(sleep_long)) for _ in range(2)]
        while len(stop._children) < 2:
            time.sleep(0.01)
        stop.now()
        late = pool.submit(stop.here(sleep_long))
        for future in [*running, late]:
            with pytest.raises(StageError, match="stopped together with the run"):
                future.result(timeout=60)
    assert not stop._children


def test_other_work_is_not_touched() -> None:
    Stopping().now()
    stopping.get().check()
