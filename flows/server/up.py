"""`fairway up`: server, work pool, limit, automations, deployments and a worker on this machine; they end
together. Or a worker alone, which joins a server.
"""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.server.addresses import LOOPBACK, in_url, port_is_free
from flows.server.database import server_database
from flows.server.environment import (
    SERVER_START_USUAL,
    comes_up,
    is_healthy,
    problem_at,
    require_answer,
    served_folder,
    stop,
)
from flows.server.settings import check_settings, settings_first
from schemas.errors import SpecError
from stages.processes.launch import guarded
from stages.processes.locks import holder, try_lock
from stages.processes.surroundings import ROOT, for_children, importing_ours

log = logging.getLogger(__name__)

PREFECT_FILE = Path(__file__).with_name("prefect.yaml")  # in a checkout, a link to the file at its root
MAX_PORT = 65_534  # the reports have the next one
WORKER_STOP_SECONDS = 25.0  # a worker ends its runs first, and a run its stage
DEPLOY_SECONDS = 300.0
_CHECK_SECONDS = 0.5
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Server:
    """What `fairway up` is to start. `host` is the address that server and reports listen on.

    `addresses`: where messages about the ends of runs go, of Apprise; empty: nowhere; None: as before.
    """

    port: int
    heartbeat_seconds: int
    host: str = LOOPBACK
    database: str | None = None
    addresses: Sequence[str] | None = None


@contextmanager
def everything_up(store: Path, wanted: Server, runs: int | None = None) -> Iterator[str]:
    """Start what is missing; yields the API's address once a worker is running.

    Everything that was started ends with the block.

    The reports get the port after the server's. A server that answers at PREFECT_API_URL or on the port is
    used unchanged. The worker takes `runs` runs at a time; None: one where workers of other machines can
    take the rest, else any number. Raises SpecError if an address, a port, the database, the Prefect home or
    this folder's worker cannot be used, RuntimeError if a part does not start.
    """
    port, host = wanted.port, wanted.host
    home, folder = _surroundings(store)
    os.environ["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] = str(wanted.heartbeat_seconds)
    with ExitStack() as stack:
        url = os.environ.get("PREFECT_API_URL") or f"http://{in_url(host)}:{port}/api"
        os.environ["PREFECT_API_URL"] = url
        own = url.startswith(
            f"http://{in_url(host)}:{port}/"
        )  # the address of the server that we would start
        if login := os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
            os.environ.setdefault("PREFECT_API_AUTH_STRING", login)
        check_settings()
        if not own:
            require_answer(url, "and `fairway up` starts its own")
        from flows.server.notifications import settle_messages
        from flows.server.setup import mark_stale_runs, prepare

        _only_worker(stack, home, folder)
        answers = is_healthy(url)
        _check_ports(wanted, for_server=not answers and own)
        database = server_database(wanted.database)
        os.environ["FAIRWAY_REPORTS_URL"] = f"http://{in_url(host)}:{port + 1}"
        # First, before another program takes the port that was free just now.
        stack.enter_context(_reports(home, store / "stages" / "publish", wanted))
        if answers:
            log.info("a Prefect server answers at %s already: using it", url)
        else:
            stack.enter_context(
                _only_one(home / "up.lock", f"PREFECT_HOME = {home}: `fairway up` runs there already")
            )
            stack.enter_context(_server(home, url, wanted, database))
        mark_stale_runs()
        prepare(wanted.heartbeat_seconds)
        settle_messages(wanted.addresses)
        _deploy(home)
        stack.callback(mark_stale_runs)  # after the worker has ended, while the server still answers
        alone = own and host == LOOPBACK
        _start_worker(stack, home, runs or (None if alone else 1))
        yield url


@contextmanager
def worker_up(store: Path, url: str, runs: int) -> Iterator[str]:
    """Join this machine to the Prefect server whose API is at `url`: start a worker of its pool that takes
    `runs` runs at a time. Yields `url`.

    The worker ends with the block; its unfinished runs go back to the queue if another worker is running.
    Raises SpecError if the server does not answer, is of another version, or was not prepared by
    `fairway up`, and if this folder's worker is running.
    """
    home, folder = _surroundings(store)
    os.environ["PREFECT_API_URL"] = url
    check_settings()
    if reason := problem_at(url):
        raise SpecError(
            f"server = {url}: no Prefect server answers there: {reason}. Start `fairway up --host ADDRESS` "
            "on its machine, or correct the address"
        )
    from flows.server.joining import check_server
    from flows.server.setup import mark_stale_runs

    os.environ["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] = str(check_server(url))
    with ExitStack() as stack:
        _only_worker(stack, home, folder)
        stack.callback(mark_stale_runs)
        _start_worker(stack, home, runs)
        yield url


def _surroundings(store: Path) -> tuple[Path, Path]:
    """Set the environment of all that is started. Returns Prefect's home and the served folder."""
    folder = served_folder()
    settings_first(folder / ".prefect")
    os.environ["FAIRWAY_STORE"] = str(store)
    os.environ["FAIRWAY_FOLDER"] = str(folder)
    os.environ.setdefault("PREFECT_WORKER_QUERY_SECONDS", "2")
    return Path(os.environ["PREFECT_HOME"]).expanduser(), folder


def _only_worker(stack: ExitStack, home: Path, folder: Path) -> None:
    """Refuse a second worker of this folder: settling takes the first one's runs for left-over ones."""
    from flows.server.setup import worker_name

    taken = f"PREFECT_HOME = {home}: `fairway up` of {folder} is running already"
    stack.enter_context(_only_one(home / f"{worker_name().rpartition(' ')[2]}.lock", taken))


def _start_worker(stack: ExitStack, home: Path, runs: int | None) -> None:
    from flows.server.setup import POOL, worker_name

    command = ["prefect", "--no-prompt", "worker", "start", "--pool", POOL, "--type", "process"]
    command += ["--name", worker_name(), *(["--limit", str(runs)] if runs else [])]
    stack.enter_context(_process("worker", home, WORKER_STOP_SECONDS, command))


def wait_for_the_end() -> None:
    """Wait for Ctrl-C or SIGTERM, which raise KeyboardInterrupt.

    Raises RuntimeError if server or worker ended by itself.
    """
    while True:
        time.sleep(_CHECK_SECONDS)
        for name, process, log_path in _started:
            if process.poll() is not None:
                raise RuntimeError(
                    f"the {name} ended with status {process.returncode}; {log_path} ends "
                    f"with:\n{_tail(log_path)}"
                )


def one_interrupt() -> None:
    """From now on the first Ctrl-C, SIGTERM or SIGHUP raises KeyboardInterrupt; later ones are ignored, so
    that they do not disturb the shutdown.
    """

    def interrupt(*_: Any) -> None:
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in _ENDING:
        signal.signal(number, interrupt)


_started: list[tuple[str, subprocess.Popen, Path]] = []


def _check_ports(wanted: Server, for_server: bool) -> None:
    """Raise SpecError for a taken port before anything is started: that of the reports, and `for_server` the
    server's.
    """
    port = wanted.port
    if for_server and not port_is_free(port, wanted.host):
        raise SpecError(
            f"--port = {port}: another program listens there. Give another one, for example --port {port + 2}"
        )
    if not port_is_free(port + 1, wanted.host):
        taken = f"--port = {port}: the next one is for the reports, and another program listens there"
        raise SpecError(f"{taken}. Give another --port, at most {MAX_PORT}")


def _reports(
    home: Path, folder: Path, wanted: Server
) -> AbstractContextManager[tuple[subprocess.Popen, Path]]:
    folder.mkdir(parents=True, exist_ok=True)
    command = ["http.server", str(wanted.port + 1), "--bind", wanted.host, "--directory", str(folder)]
    return _process("reports", home, 5.0, command)


@contextmanager
def _server(home: Path, url: str, wanted: Server, database: dict[str, str]) -> Iterator[None]:
    began = time.perf_counter()
    log.info("starting the Prefect server, %s", SERVER_START_USUAL)
    listening = ["--host", wanted.host, "--port", str(wanted.port)]
    command = ["flows.server.prefect_server", "--no-prompt", "server", "start", *listening]
    with _process("server", home, 10.0, command, **database) as (process, log_path):
        if not comes_up(process, url):
            raise RuntimeError(
                f"the Prefect server did not start (its port is {wanted.port}); {log_path} ends "
                f"with:\n{_tail(log_path)}"
            )
        log.info("Prefect server ready in %.1f s", time.perf_counter() - began)
        yield


@contextmanager
def _process(
    name: str, home: Path, grace_seconds: float, command: list[str], **environment: str
) -> Iterator[tuple[subprocess.Popen, Path]]:
    """Start a Python module in a session of its own, so that Ctrl-C reaches only us and we choose the order
    of ending. `environment` is for this process alone.
    """
    log_path = home / f"{name}.log"
    with log_path.open("ab") as output:
        process = subprocess.Popen(
            [*guarded("SIGTERM"), "-m", *command],
            cwd=ROOT,
            env=importing_ours(for_children(os.environ | environment)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    entry = (name, process, log_path)
    _started.append(entry)
    try:
        yield process, log_path
    finally:
        _started.remove(entry)
        stop(process, grace_seconds)


def _deploy(home: Path) -> None:
    """Make the deployments of prefect.yaml.

    Raises RuntimeError if Prefect fails or takes more than DEPLOY_SECONDS.
    """
    began = time.perf_counter()
    log.info("making the deployments of prefect.yaml, 5 to 30 s")
    command = ["prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(PREFECT_FILE)]
    with _process("deploy", home, 10.0, command) as (process, log_path):
        try:
            status = process.wait(DEPLOY_SECONDS)
        except subprocess.TimeoutExpired:
            status = None
    if status != 0:
        how = (
            f"ended with status {status}"
            if status is not None
            else f"did not end within {DEPLOY_SECONDS:.0f} s"
        )
        raise RuntimeError(f"`prefect deploy --all` {how}; {log_path} ends with:\n{_tail(log_path)}")
    log.info("deployments of prefect.yaml made in %.1f s", time.perf_counter() - began)


@contextmanager
def _only_one(path: Path, taken: str) -> Iterator[Any]:
    """Hold the lock file `path` for the time of the block. The kernel drops the lock when its holder dies.

    Two servers on one SQLite file block each other. Raises SpecError, which begins with `taken`, if another
    process holds it.
    """
    if (file := try_lock(path)) is None:
        raise SpecError(f"{taken} (process {holder(path)}); stop it first")
    with file:
        yield file


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
