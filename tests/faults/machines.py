"""Two machines for tests: network namespaces with an address each, on one switch with this machine.

Needs root and `ip`. A machine shares disk, processor and process table with this one; its network is its own.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMESPACES = Path("/run/netns")
SWITCH = "fairway-switch"
HERE = "10.77.0.254"
"""The address of this machine, which launches, on the switch."""


@dataclass(frozen=True)
class Machine:
    """A network namespace; `eth0` is its cable to the switch."""

    name: str
    address: str

    @property
    def prefix(self) -> list[str]:
        """What starts a command there. `ip netns exec` would hide the control groups, which Slurm needs."""
        return ["nsenter", f"--net={NAMESPACES / self.name}"]

    def pids(self) -> list[int]:
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True)
        return [int(word) for word in found.stdout.split()]

    def pull_cable(self) -> None:
        ip("-n", self.name, "link", "set", "eth0", "down")

    def plug_cable(self) -> None:
        ip("-n", self.name, "link", "set", "eth0", "up")

    def kill(self) -> None:
        """SIGKILL to all that runs there."""
        while pids := self.pids():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


MACHINES = (Machine("fairway0", "10.77.0.1"), Machine("fairway1", "10.77.0.2"))


def ip(*words: str) -> bool:
    """Whether the command succeeded."""
    return subprocess.run(["ip", *words], capture_output=True).returncode == 0


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Make both, and remove them with all that runs there. Skips where nobody may make namespaces."""
    if shutil.which("ip") is None or shutil.which("nsenter") is None:
        pytest.skip("no `ip` or `nsenter` here: apt-get install iproute2 util-linux")
    if there := [str(path) for machine in MACHINES if (path := NAMESPACES / machine.name).exists()]:
        pytest.fail(f"{there[0]}: another test uses it, or one that was killed left it (`ip netns del`)")
    try:
        if not all(ip("netns", "add", machine.name) for machine in MACHINES):
            pytest.skip("this machine lets nobody make network namespaces (root is needed)")
        made = [ip("link", "add", SWITCH, "type", "bridge")]
        made.append(ip("address", "add", f"{HERE}/24", "dev", SWITCH))
        made.append(ip("link", "set", SWITCH, "up"))
        for machine in MACHINES:
            port = f"{machine.name}-port"
            made.append(ip("link", "add", port, "type", "veth", "peer", "eth0", "netns", machine.name))
            made.append(ip("link", "set", port, "master", SWITCH, "up"))
            made.append(ip("-n", machine.name, "address", "add", f"{machine.address}/24", "dev", "eth0"))
            for device in ("lo", "eth0"):
                made.append(ip("-n", machine.name, "link", "set", device, "up"))
        if not all(made):
            pytest.skip("this machine's kernel makes no bridge between network namespaces")
        yield MACHINES
    finally:
        for machine in MACHINES:
            machine.kill()
            ip("netns", "del", machine.name)
        ip("link", "del", SWITCH)
