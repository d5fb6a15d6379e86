"""A real PostgreSQL for tests, with a user and a password, on a free port of the loopback interface.

apt-get install --no-install-recommends postgresql
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.ports import free_port

USER, PASSWORD = "fairway", "a-password-that-nobody-may-see"


def _program(name: str) -> str | None:
    """Debian keeps some of them out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(found[-1]) if found else None)


def missing_programs() -> list[str]:
    return [name for name in ("initdb", "pg_ctl", "postgres") if _program(name) is None]


@contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """The address of a database, with its password. `folder` must have a short path: a socket lies in it.

    Raises RuntimeError with the last log lines when it does not start.
    """
    secret, data, port = folder / "password", folder / "data", free_port()
    secret.write_text(PASSWORD)
    account = "nobody" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
    if account:
        for path in (folder, secret):
            shutil.chown(path, account)
    _do(account, "initdb", "-D", data, "-U", USER, "--pwfile", secret, "-A", "scram-sha-256")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    _do(account, "pg_ctl", "-D", data, "-l", folder / "log", "-w", "-o", options, "start")
    try:
        yield f"postgresql+asyncpg://{USER}:{PASSWORD}@127.0.0.1:{port}/postgres"
    finally:
        _do(account, "pg_ctl", "-D", data, "-m", "immediate", "stop")


def _do(account: str | None, program: str, *arguments: object) -> None:
    command = [str(_program(program)), *map(str, arguments)]
    with open(os.devnull) as nothing:
        made = subprocess.run(
            command, user=account, cwd="/", stdin=nothing, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=120,
        )  # fmt: skip
    if made.returncode:
        raise RuntimeError(f"{program}: status {made.returncode}: {made.stdout[-2000:]}")
