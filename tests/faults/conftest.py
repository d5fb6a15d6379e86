"""What several faults are measured against: one undisturbed run, and one that is interrupted while two ranks
train.
"""

import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import FULL, Struck, finish_chain, start_fairway

# Long enough that kills can hit the training itself.
STEPS = f"train.schedule.max_steps={300 if FULL else 120}"
TWO_RANKS = ("--set", STEPS, "--processes", "2")


@dataclass(frozen=True)
class Undisturbed:
    """A finished run that nothing happened to."""

    store: Path
    events: list[dict[str, Any]]

    @property
    def sha256(self) -> str:
        return self.events[-1]["sha256"]

    def seconds(self, stage: str) -> float:
        return next(
            event["seconds"]
            for event in self.events
            if event.get("stage") == stage and event["event"] == "made"
        )

    def folder(self, stage: str, store: Path | None = None) -> Path:
        key = next(
            event["key"] for event in self.events if event.get("stage") == stage and event["event"] == "made"
        )
        return (store or self.store) / "stages" / stage / key[:32]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    return Undisturbed(folder / "store", finish_chain(folder / "store", folder / "logs", STEPS))


@pytest.fixture
def copied(undisturbed: Undisturbed, tmp_path: Path) -> Path:
    """The undisturbed store at another place, on a path with spaces and letters beyond ASCII."""
    store = tmp_path / "ein Lager für 模型"
    shutil.copytree(undisturbed.store, store)
    return store


@dataclass(frozen=True)
class Interrupted:
    """A run of two ranks that was sent a signal while it trained, and what was seen of it."""

    store: Path
    sockets: list[tuple[str, int]]
    """(address, port) on which its processes listened before the signal."""
    num_processes: int
    gone_after: float | None
    """Seconds from the signal until every process was gone; None if one stayed for a minute."""
    num_left: int
    status: int


@pytest.fixture(scope="session")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[signal.Signals], Interrupted]:
    """`interrupted(signal)`; each signal strikes one run."""

    @cache
    def interrupt(how: signal.Signals) -> Interrupted:
        folder = tmp_path_factory.mktemp("interrupted")
        run = start_fairway(folder / "store", folder / "logs", *TWO_RANKS)
        assert run.wait_for(lambda: list(folder.glob("store/work/train/*/checkpoints/*.json")), 200)
        sockets, num_processes = sorted(_listening(run)), len(run.pids())
        run.process.send_signal(how)
        seconds = run.gone_after(60)
        left, status = len(run.pids()), run.process.wait(30)
        return Interrupted(folder / "store", sockets, num_processes, seconds, left, status)

    return interrupt


def _listening(run: Struck) -> Iterator[tuple[str, int]]:
    """(address, port) of every TCP socket on which a process of the run listens."""
    inodes = set()
    for pid in run.pids():
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.add(os.readlink(link))
            except FileNotFoundError:
                continue
    for family, name in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                address, port = fields[1].split(":")
                words = b"".join(bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8))
                yield socket.inet_ntop(family, words), int(port, 16)
