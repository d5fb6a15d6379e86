"""Trainings on several machines for tests: started, watched, counted."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.faults.chain import Chain


def weights_of(store: Path, overrides: list[str], **options: object) -> tuple[str, tuple[int, ...]]:
    """sha256 of the last iterate, and the steps from which training went on."""
    chain = Chain(store, overrides, **options)
    chain.run("tokenize_corpus")
    trained = chain.run("train").record.result
    return trained.last.weights.sha256, trained.timings.resumed_from_steps


def listed(steps: tuple[int, ...]) -> str:
    return ", ".join(map(str, steps))


def checkpoints(store: Path) -> list[Path]:
    return list(store.glob("work/train/*/checkpoints/*.json"))


def wait_until(condition: Callable[[], object], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def nodes_of(store: Path) -> list[psutil.Process]:
    """Processes of any try of a training in the store, on any machine."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE
        and any(str(store) in word for word in process.info["cmdline"] or ())
        and process.pid != os.getpid()
    ]
