"""The processes of one machine that trains with others: python -m stages.processes.node WHICH FOLDER TOKEN

A launcher starts it once on each machine. WHICH is the machine's number, `slurm` or `kubernetes`, whose own
variable has it, or `local`: all machines of the order, on this one.

The rendezvous is static: ranks and the first machine's address are known before any process joins. Unlike
torchrun's default (c10d), nothing that arrives at the port is unpickled. A process that fails ends the others
of its machine, and so does a newer try. torchrun could not be fenced like that, and would load PyTorch once
more on each machine. Starting again is left to the stage.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from schemas.errors import FairwayError, SpecError
from stages.processes.launch import check_gpus, child_environment, guarded, leave_error
from stages.processes.meeting import LOOK_SECONDS, TRY, Arrival, Meeting, Order, StaleTryError
from stages.processes.process_tree import end_trees

NUMBER_IN = {"slurm": "SLURM_PROCID", "kubernetes": "JOB_COMPLETION_INDEX"}
"""Launcher -> the variable in which it tells a process the number of its machine."""
_POLL_SECONDS = 0.2


def main() -> None:
    which, folder, token = sys.argv[1:]
    meeting = Meeting(Path(folder), token)
    try:
        order = meeting.order()
        if which == "local":
            status = _all_machines_here(meeting, order)
        else:
            status = _one_machine(meeting, order, _number(which))
    except FairwayError as error:
        leave_error(meeting.folder, error)
        status = 1
    except (StaleTryError, TimeoutError) as error:
        print(f"machine {which}: {error}", flush=True)
        status = 1
    if status:
        meeting.fail()
    sys.exit(status)


def _number(which: str) -> int:
    name = NUMBER_IN.get(which)
    given = which if name is None else os.environ.get(name, "")
    if not given.isdecimal():
        raise SpecError(f"launcher = {which}: {name} = {given!r} is no number; start this by the launcher")
    return int(given)


def _all_machines_here(meeting: Meeting, order: Order) -> int:
    here = [sys.executable, "-m", "stages.processes.node"]
    commands = [
        [*guarded("SIGTERM")[:-1], *here, str(node), str(meeting.folder), meeting.token]
        for node in range(order.compute.num_nodes)
    ]
    return _supervise("machine", [(command, os.environ) for command in commands], meeting)


def _one_machine(meeting: Meeting, order: Order, node: int) -> int:
    compute = order.compute
    check_gpus(compute)
    interface, address = interface_of(order.interface)
    meeting.arrive(node, Arrival(address=address, port=_free_port(address)))
    first = meeting.wait_for(compute.num_nodes)
    # How threads should wait depends on this machine's cores, not on those of the launching one.
    given = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    shared = child_environment({**given, **order.waits}, compute) | {
        "WORLD_SIZE": str(compute.world_size),
        "LOCAL_WORLD_SIZE": str(compute.num_processes),
        "MASTER_ADDR": first.address,
        "MASTER_PORT": str(first.port),
        "GLOO_SOCKET_IFNAME": interface,
        "NCCL_SOCKET_IFNAME": f"={interface}",
        TRY: f"{meeting.token} {meeting.folder}",
    }
    command = [*guarded("SIGKILL"), *order.program]
    before = node * compute.num_processes
    ranks = [
        (command, {**shared, "RANK": str(before + local), "LOCAL_RANK": str(local)})
        for local in range(compute.num_processes)
    ]
    return _supervise(f"machine {node}: process", ranks, meeting)


def interface_of(wanted: str | None) -> tuple[str, str]:
    """Name and address of the network interface `wanted`; of the only one, without loopback, for None.

    Raises SpecError where there is no such one, or a choice: weights travel over it unencrypted.
    """
    found = {
        name: address
        for name, state in psutil.net_if_stats().items()
        if state.isup and (address := _address(name))
    }
    if wanted is not None:
        if wanted in found:
            return wanted, found[wanted]
        raise SpecError(f"interface = {wanted}: {socket.gethostname()} has {_listed(found)}")
    others = {name: address for name, address in found.items() if name != "lo"}
    if len(others) != 1:
        raise SpecError(f"interface: {socket.gethostname()} has {_listed(others)}; name one with --interface")
    return next(iter(others.items()))


def _listed(interfaces: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({address})" for name, address in interfaces.items()) or "none that is up"


def _address(interface: str) -> str | None:
    """The first IPv4 address, else the first IPv6 one that other machines reach."""
    of_family: dict[int, str] = {}
    for item in psutil.net_if_addrs().get(interface, ()):
        if item.family in (socket.AF_INET, socket.AF_INET6) and not item.address.startswith("fe80"):
            of_family.setdefault(item.family, item.address)
    return of_family.get(socket.AF_INET) or of_family.get(socket.AF_INET6)


def _free_port(address: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


def _supervise(what: str, programs: Sequence[tuple[list[str], Mapping[str, str]]], meeting: Meeting) -> int:
    """Run the programs until all have ended; the status of the first that fails, after the others' end.

    Ends all once the try counts no more.
    """
    processes = [subprocess.Popen(command, env=environment) for command, environment in programs]
    next_look = time.monotonic() + LOOK_SECONDS
    try:
        while True:
            statuses = [process.poll() for process in processes]
            for number, status in enumerate(statuses):
                if status:
                    print(f"{what} {number} ended with status {status}", flush=True)
                    return 1
            if all(status == 0 for status in statuses):
                return 0
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + LOOK_SECONDS
                if not meeting.counts:
                    raise StaleTryError("stopped, or replaced by a newer try: its processes end")
            time.sleep(_POLL_SECONDS)
    finally:
        end_trees([process for process in processes if process.poll() is None], 0)


if __name__ == "__main__":
    main()
