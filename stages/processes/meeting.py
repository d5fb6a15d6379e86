"""The folder in which the machines of one training meet, on a disk that they share, and the newest try.

The launcher writes the order; each machine adds where it is reached. The newest order fences every earlier
try: its processes end, and write no more checkpoints. Nothing here is trusted with code: all files are JSON.
"""

import os
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from schemas.base import Schema
from schemas.compute_settings import ComputeSettings
from schemas.errors import StageError
from stages.core.whole_files import write_whole

FOLDER = "nodes"
TRY = "FAIRWAY_TRY"
JOIN_SECONDS = 600.0  # a cluster may have to fetch an image first
LOOK_SECONDS = 1.0
FENCE_SECONDS = 5.0  # processes of an earlier try look each second, and are killed at once
_POLL_SECONDS = 0.1


class StaleTryError(RuntimeError):
    """Another try of the same training has begun, or this one was stopped: it may write nothing more."""


class Order(Schema):
    """What each machine starts: `program` is what follows `python`, `waits` how the user wants threads to
    wait.
    """

    token: str
    program: tuple[str, ...]
    compute: ComputeSettings
    interface: str | None
    waits: dict[str, str]


class Arrival(Schema):
    """Address of a machine, and the port that the first one keeps free for the rendezvous."""

    address: str
    port: int


class Meeting:
    """One try of a training whose files lie in `folder`."""

    def __init__(self, folder: Path, token: str) -> None:
        self.folder, self.token = folder, token
        self._place = folder / FOLDER

    @classmethod
    def call(
        cls, folder: Path, program: tuple[str, ...], compute: ComputeSettings, interface: str | None
    ) -> "Meeting":
        """Write the order of a new try. Processes of an earlier one get FENCE_SECONDS to end."""
        waits = {
            name: os.environ[name] for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if name in os.environ
        }
        meeting = cls(folder.resolve(), uuid.uuid4().hex)
        order = Order(token=meeting.token, program=program, compute=compute, interface=interface, waits=waits)
        replaced = _order_path(meeting._place).exists()
        meeting._place.mkdir(exist_ok=True)
        write_whole(_order_path(meeting._place), order.model_dump_json().encode())
        if replaced:
            time.sleep(FENCE_SECONDS)
        for old in (*meeting._place.glob("*.node"), *meeting._place.glob("*.failed")):
            if not old.name.startswith(meeting.token):
                old.unlink(missing_ok=True)
        return meeting

    @property
    def counts(self) -> bool:
        """Whether this is still the newest try."""
        return _newest_token(self._place) == self.token

    def order(self) -> Order:
        """Raises StageError where this machine does not see the folder, StaleTryError for an old try."""
        if not self.folder.is_dir():
            raise StageError(
                f"{self.folder}: this machine does not see the folder of the training; all machines must "
                "have the store at the same path, on a disk that they share"
            )
        self._check()
        return Order.model_validate_json(_order_path(self._place).read_bytes())

    def arrive(self, node: int, arrival: Arrival) -> None:
        """Tell the others where machine number `node` is reached."""
        self._check()
        write_whole(self._arrival_path(node), arrival.model_dump_json().encode())

    def wait_for(self, num_nodes: int, timeout: float = JOIN_SECONDS) -> Arrival:
        """Where the first machine is reached, once all have arrived.

        Raises TimeoutError naming those that did not, StaleTryError when the try is over.
        """
        deadline = time.monotonic() + timeout
        while missing := [node for node in range(num_nodes) if not self._arrival_path(node).exists()]:
            self._check()
            if time.monotonic() > deadline:
                numbers = ", ".join(map(str, missing))
                raise TimeoutError(
                    f"machine {numbers} of {num_nodes} (counted from 0) not here after {timeout} s"
                )
            time.sleep(_POLL_SECONDS)
        return Arrival.model_validate_json(self._arrival_path(0).read_bytes())

    def fail(self) -> None:
        """Tell the launcher that this machine's processes failed, unless the try is over."""
        with suppress(FileNotFoundError):  # the launcher ended it just now
            if self.counts:
                write_whole(self._failure_path, b"")

    @property
    def has_failed(self) -> bool:
        """Whether the processes of a machine failed."""
        return self._failure_path.exists()

    def end(self) -> None:
        """The try is over: whatever of it still runs on any machine ends. A newer one is left alone."""
        if self.counts:
            shutil.rmtree(self._place, ignore_errors=True)

    def _check(self) -> None:
        if not self.counts:
            raise StaleTryError("this try of the training was stopped or replaced by a newer one")

    @property
    def _failure_path(self) -> Path:
        return self._place / f"{self.token}.failed"

    def _arrival_path(self, node: int) -> Path:
        return self._place / f"{self.token}-{node}.node"


def refuse_stale_try() -> None:
    """In a process of a training on several machines: raise StaleTryError once its try counts no more."""
    if given := os.environ.get(TRY):
        token, _, folder = given.partition(" ")
        Meeting(Path(folder), token)._check()


def _order_path(place: Path) -> Path:
    return place / "try.json"


def _newest_token(place: Path) -> str | None:
    try:
        return Order.model_validate_json(_order_path(place).read_bytes()).token
    except (OSError, ValidationError):
        return None
