"""Termination of process trees: child processes and everything that they started."""

import contextlib
import subprocess
import time
from collections.abc import Iterable, Sequence

import psutil

LEFT_BEHIND_SECONDS = 5.0
_POLL_SECONDS = 0.05


def end_trees(parents: Sequence[subprocess.Popen], grace_seconds: float) -> None:
    """End each parent and all its descendants, and return once they are gone.

    The parents get SIGTERM first, so that each can end its own children in order, and SIGKILL after
    `grace_seconds`. Remaining descendants then get SIGTERM, and SIGKILL after at most LEFT_BEHIND_SECONDS
    more.
    """
    descendants = _descendants(parents)  # while their parents still lead to them
    for parent in parents:
        parent.terminate()
    deadline = time.monotonic() + grace_seconds
    for parent in parents:
        with contextlib.suppress(subprocess.TimeoutExpired):
            parent.wait(max(0.0, deadline - time.monotonic()))
    descendants |= _descendants(parents)
    for parent in parents:
        parent.kill()  # does nothing to one that has ended
        parent.wait()
    end_processes(descendants, min(grace_seconds, LEFT_BEHIND_SECONDS))


def end_processes(processes: Iterable[psutil.Process], grace_seconds: float) -> None:
    """SIGTERM to each process, and SIGKILL after `grace_seconds`. A process that has ended is no error."""
    running = [process for process in processes if is_running(process)]
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for process in running:
            with contextlib.suppress(psutil.NoSuchProcess):
                end(process)
        running = _running_after(running, grace_seconds)


def processes_with(variable: str, value: str) -> list[psutil.Process]:
    """This user's processes that have this environment variable, orphans included."""
    return [
        process
        for process in psutil.process_iter(["environ"])
        if (process.info["environ"] or {}).get(variable) == value
    ]


def is_running(process: psutil.Process) -> bool:
    """Whether the process still runs. A zombie has ended, though its parent may never ask for its status."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _descendants(parents: Iterable[subprocess.Popen]) -> set[psutil.Process]:
    descendants: set[psutil.Process] = set()
    for parent in parents:
        if parent.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                descendants.update(psutil.Process(parent.pid).children(recursive=True))
    return descendants


def _running_after(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """The processes that still run after `seconds`; [] as soon as none does. psutil.wait_procs would wait for
    zombies.
    """
    deadline = time.monotonic() + seconds
    while (
        running := [process for process in processes if is_running(process)]
    ) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return running
