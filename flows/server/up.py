"""`fairway up`: server, work pool, limit, automation, deployments and a worker on this machine; they end
together.
"""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from flows.server.environment import (
    SERVER_START_USUAL,
    check_settings,
    comes_up,
    is_healthy,
    port_is_free,
    require_answer,
    served_folder,
    settings_first,
    stop,
)
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


@contextmanager
def everything_up(
    store: Path, port: int, heartbeat_seconds: int, addresses: Sequence[str] | None = None
) -> Iterator[str]:
    """Start what is missing; yields the API's address once a worker is running.

    Everything that was started ends with the block.

    `addresses`: where messages about the ends of runs go, of Apprise; empty: nowhere; None: as before.
    The reports get the port after `port`. A server that answers at PREFECT_API_URL or on `port` is used
    unchanged. Raises SpecError if a port, the Prefect home or this folder's worker is taken, RuntimeError
    if a part does not start.
    """
    folder = served_folder()
    settings_first(folder / ".prefect")
    home = Path(os.environ["PREFECT_HOME"]).expanduser()
    os.environ["FAIRWAY_STORE"] = str(store)
    os.environ["FAIRWAY_FOLDER"] = str(folder)
    os.environ["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] = str(heartbeat_seconds)
    os.environ.setdefault("PREFECT_WORKER_QUERY_SECONDS", "2")
    with ExitStack() as stack:
        url = os.environ.get("PREFECT_API_URL") or f"http://127.0.0.1:{port}/api"
        os.environ["PREFECT_API_URL"] = url
        check_settings()
        if not _is_local(url, port):
            require_answer(url, "and `fairway up` starts its own")
        from flows.server.notifications import settle_messages
        from flows.server.setup import POOL, mark_stale_runs, prepare, worker_name

        # Settling takes this worker's running flows for left-over ones, so the same folder works only once.
        taken = f"PREFECT_HOME = {home}: `fairway up` of {folder} is running already"
        stack.enter_context(_only_one(home / f"{worker_name().rpartition(' ')[2]}.lock", taken))
        answers = is_healthy(url)
        _check_ports(port, for_server=not answers and _is_local(url, port))
        if answers:
            log.info("a Prefect server answers at %s already: using it", url)
        else:
            stack.enter_context(
                _only_one(home / "up.lock", f"PREFECT_HOME = {home}: `fairway up` runs there already")
            )
            stack.enter_context(_server(home, url, port))
        mark_stale_runs()
        prepare(heartbeat_seconds)
        settle_messages(addresses)
        _deploy(home)
        stack.callback(mark_stale_runs)  # after the worker has ended, while the server still answers
        reports = store / "stages" / "publish"
        reports.mkdir(parents=True, exist_ok=True)
        os.environ["FAIRWAY_REPORTS_URL"] = f"http://127.0.0.1:{port + 1}"
        stack.enter_context(
            _process(
                "reports",
                home,
                5.0,
                ["http.server", str(port + 1), "--bind", "127.0.0.1", "--directory", str(reports)],
            )
        )
        command = [
            "prefect",
            "--no-prompt",
            "worker",
            "start",
            "--pool",
            POOL,
            "--type",
            "process",
            "--name",
            worker_name(),
        ]
        stack.enter_context(_process("worker", home, WORKER_STOP_SECONDS, command))
        yield url


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


def _is_local(url: str, port: int) -> bool:
    """Whether `url` is the address of the server that we would start."""
    return url.startswith(f"http://127.0.0.1:{port}/")


def _check_ports(port: int, for_server: bool) -> None:
    """Raise SpecError for a taken port before anything is started: that of the reports, and `for_server` the
    server's.
    """
    if for_server and not port_is_free(port):
        raise SpecError(
            f"--port = {port}: another program listens there. Give another one, for example --port {port + 2}"
        )
    if not port_is_free(port + 1):
        taken = f"--port = {port}: the next one is for the reports, and another program listens there"
        raise SpecError(f"{taken}. Give another --port, at most {MAX_PORT}")


@contextmanager
def _server(home: Path, url: str, port: int) -> Iterator[None]:
    began = time.perf_counter()
    log.info("starting the Prefect server, %s", SERVER_START_USUAL)
    command = ["prefect", "--no-prompt", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with _process("server", home, 10.0, command) as (process, log_path):
        if not comes_up(process, url):
            raise RuntimeError(
                f"the Prefect server did not start (its port is {port}); {log_path} ends "
                f"with:\n{_tail(log_path)}"
            )
        log.info("Prefect server ready in %.1f s", time.perf_counter() - began)
        yield


@contextmanager
def _process(
    name: str, home: Path, grace_seconds: float, command: list[str]
) -> Iterator[tuple[subprocess.Popen, Path]]:
    """Start a Python module in a session of its own, so that Ctrl-C reaches only us and we choose the order
    of ending.
    """
    log_path = home / f"{name}.log"
    with log_path.open("ab") as output:
        process = subprocess.Popen(
            [*guarded("SIGTERM"), "-m", *command],
            cwd=ROOT,
            env=importing_ours(for_children(os.environ)),
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
