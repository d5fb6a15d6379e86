"""Ending a process ends what it started: the obedient in order, the deaf by SIGKILL, the orphaned by
their environment.
"""

import os
import subprocess
import sys
import time
import uuid

import psutil

from flows.server.environment import stop
from stages.processes.process_tree import end_processes, end_trees, is_running, processes_with

DEAF = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', "
    "flush=True); time.sleep(600)"
)
WITH_CHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {inner!r}], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep({seconds})
"""


def family(inner: str, seconds: float, **options) -> tuple[subprocess.Popen, psutil.Process]:
    """A parent, and the child that it started; both are ready."""
    code = WITH_CHILD.format(inner=inner, seconds=seconds)
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, **options)
    assert parent.stdout is not None
    return parent, psutil.Process(int(parent.stdout.readline()))


def test_a_grandchild_that_ignores_sigterm_is_ended_with_its_parent() -> None:
    parent, child = family(DEAF, 600)
    end_trees([parent], 0.5)
    assert parent.returncode == -15
    assert not is_running(child)


def test_a_parent_that_ignores_sigterm_is_killed_and_its_child_too() -> None:
    parent, child = family("print('ready', flush=True); import time; time.sleep(600)", 600)
    deaf = subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE, text=True)
    assert deaf.stdout is not None
    deaf.stdout.readline()
    began = time.monotonic()
    end_trees([parent, deaf], 0.5)
    assert (parent.returncode, deaf.returncode) == (-15, -9)
    assert not is_running(child)
    assert time.monotonic() - began < 20


def test_a_parent_that_ended_before_is_no_error() -> None:
    parent = subprocess.Popen([sys.executable, "-c", ""])
    parent.wait()
    end_trees([parent], 0.5)
    assert parent.returncode == 0


def test_orphans_are_found_by_their_environment() -> None:
    value = str(uuid.uuid4())
    parent, child = family(DEAF, 0, env={**os.environ, "FAIRWAY_TEST": value})
    parent.wait()
    assert processes_with("FAIRWAY_TEST", value) == [child]
    end_processes([child], 0.2)
    assert processes_with("FAIRWAY_TEST", value) == []


def test_a_server_is_stopped_with_what_it_started() -> None:
    parent, child = family(DEAF, 600)
    stop(parent, 0.5)
    assert not is_running(child)
