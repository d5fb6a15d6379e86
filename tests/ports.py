"""Ports of the loopback interface for servers that a test starts."""

import random
import socket
from contextlib import ExitStack
from pathlib import Path

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 10_000


def free_port() -> int:
    return free_ports(1)


def free_ports(count: int) -> int:
    """The first of `count` neighbouring free ports.

    They lie below those that the kernel gives to outgoing connections: one of these would take a port of a
    server that is still starting, or that is down for a moment.
    """
    highest = int(_EPHEMERAL.read_text().split()[0]) if _EPHEMERAL.exists() else 32_768
    while True:
        first = random.SystemRandom().randrange(_LOWEST, highest - count)
        with ExitStack() as bound:
            try:
                for port in range(first, first + count):
                    bound.enter_context(socket.socket()).bind(("", port))
            except OSError:
                continue
        return first
