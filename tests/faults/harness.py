"""Start real processes, strike them, and count what is left.

A mark in their environment finds them, whatever their session.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
FULL = os.environ.get("FAIRWAY_FAULTS") == "full"
LAST = list(STAGES)[-1]
_MARK = "FAIRWAY_FAULT_MARK"


@dataclass
class Struck:
    """A started program, with every process that comes from it."""

    process: subprocess.Popen
    mark: str
    output: Path

    def pids(self) -> list[int]:
        """Every living process with this mark."""
        wanted = f"{_MARK}={self.mark}".encode()
        return [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and wanted in _environment(entry)
        ]

    def kill(
        self, how: signal.Signals = signal.SIGKILL, only: Callable[[int], bool] = lambda pid: True
    ) -> int:
        """Strike every process of it at once, in any order; returns how many."""
        pids = [pid for pid in self.pids() if only(pid)]
        random.shuffle(pids)
        for pid in pids:
            _send(pid, how)
        return len(pids)

    def kill_at_once(self) -> None:
        """SIGKILL to the program first and to all that it started: looking for those takes longer than a
        short stage.
        """
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.end()

    def end(self) -> None:
        """SIGKILL until nothing is left."""
        while self.kill():
            time.sleep(0.01)
        self.process.wait(30)

    def gone_after(self, seconds: float) -> float | None:
        """Seconds until every process of it is gone; None if one is still there after `seconds`."""
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            self.process.poll()
            if not self.pids():
                return time.monotonic() - started
            time.sleep(0.05)
        return None

    def events(self) -> list[dict[str, Any]]:
        """The whole JSON lines that it has printed so far."""
        lines = self.output.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def text(self) -> str:
        return self.output.with_suffix(".err").read_text(encoding="utf-8", errors="replace")

    def wait_for(self, condition: Callable[[], Any], seconds: float = 120.0) -> Any:
        """The first true answer of `condition`; None when the program ended before. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if answer := condition():
                return answer
            if self.process.poll() is not None:
                return condition() or None
            time.sleep(0.002)
        raise TimeoutError(f"waited {seconds} s; it said:\n{self.text()[-2000:]}")


def start(command: Sequence[str], folder: Path, prefix: Sequence[str] = (), **environment: str) -> Struck:
    """Start a Python program of the checkout in a session of its own; `prefix` is a program that starts
    it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex
    output = folder / f"{mark}.out"
    with output.open("wb") as out, output.with_suffix(".err").open("wb") as err:
        process = subprocess.Popen(
            [*prefix, sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, **environment, _MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
            preexec_fn=_hear_ctrl_c,
        )
    return Struck(process, mark, output)


def start_chain(
    store: Path,
    logs: Path,
    *overrides: str,
    until: str = LAST,
    prefix: Sequence[str] = (),
    **environment: str,
) -> Struck:
    """The chain of the preset `smoke` up to the stage `until`, in a process of its own."""
    command = ["-m", "tests.faults.chain", str(store), "--until", until, *overrides]
    return start(command, logs, prefix, **environment)


def start_fairway(store: Path, logs: Path, *options: str, **environment: str) -> Struck:
    """`fairway run` of the preset `smoke`, with Prefect and its server."""
    command = [
        "-m",
        "flows.cli",
        "run",
        "--preset",
        "smoke",
        "--store",
        str(store),
        "--json",
        "--checkpoint-every",
        "0.5",
        *options,
    ]
    return start(command, logs, **environment)


def finish_chain(
    store: Path, logs: Path, *overrides: str, until: str = LAST, **environment: str
) -> list[dict[str, Any]]:
    """Run the chain up to `until`; the events it told. Raises AssertionError with its last words if it
    fails.
    """
    run = start_chain(store, logs, *overrides, until=until, **environment)
    status = run.process.wait(300)
    assert status == 0, run.text()[-3000:]
    return run.events()


def made(events: Sequence[dict[str, Any]]) -> list[str]:
    return [event["stage"] for event in events if event["event"] == "made"]


def _hear_ctrl_c() -> None:
    """What a shell starts in the background ignores Ctrl-C, and all that it starts does too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _environment(entry: Path) -> bytes:
    try:
        if b"\nState:\tZ" in (entry / "status").read_bytes():
            return b""
        return (entry / "environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def _send(pid: int, how: signal.Signals) -> None:
    try:
        os.kill(pid, how)
    except ProcessLookupError:
        return
