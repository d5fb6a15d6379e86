"""Prefect's API for a run: a server that runs already, or a temporary one."""

import http.client
import logging
import os
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path

from flows.server.addresses import free_port
from flows.server.settings import SETTINGS, check_settings, profiles_path, settings_first
from schemas.errors import SpecError
from stages.processes.launch import guarded
from stages.processes.locks import try_lock
from stages.processes.process_tree import end_trees
from stages.processes.surroundings import (
    ROOT,
    for_children,
    importing_ours,
    proxy_variables,
)

log = logging.getLogger(__name__)

SERVER_START_SECONDS = 90.0
SERVER_START_USUAL = "3 to 20 s"
SERVER_STOP_SECONDS = 5.0
_TRIES = 3
_ANSWER_SECONDS = 5.0
_PAUSE_SECONDS = 1.0
_PORT_TAKEN = "address already in use"

Waiting = Callable[[str], AbstractContextManager[None]]
"""Called with what is waited for; the wait is the block."""


def served_folder() -> Path:
    """The folder that `fairway up` serves: the checkout, or the working folder of an installed program.

    It holds Prefect's files; relative paths in forms begin there.
    """
    return ROOT if (ROOT / "pyproject.toml").is_file() else Path.cwd()


@contextmanager
def say_waiting(what: str) -> Iterator[None]:
    """A log line at the beginning of a wait."""
    log.info("%s", what)
    yield


def prefect_settings(store: Path) -> None:
    """Give Prefect its settings, before it is imported. Raises SpecError for settings that cannot be used."""
    settings_first(store / "prefect" / "home")
    check_settings()


@contextmanager
def prefect_api(store: Path, waiting: Waiting = say_waiting) -> Iterator[str]:
    """Address of a Prefect API for the time of the block: the configured server's, else a temporary one's.

    `waiting` is entered while the temporary server starts, with a description and the usual time. The server
    keeps its database under `<store>/prefect/temporary-N`, one N for each simultaneous run. It ends with the
    block, or with this process however that ends. Raises SpecError if the configured server does not answer.
    """
    prefect_settings(store)
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_HOME,
        temporary_settings,
    )

    if url := PREFECT_API_URL.value():
        require_answer(url, "to run with a temporary one")
        yield url
        return
    with (
        free_home(store / "prefect") as (home, lock),
        _server(home, lock, waiting) as url,
        # Nobody watches this server for lost heartbeats, and waiting for the heartbeat thread costs every
        # flow a second.
        temporary_settings(
            {PREFECT_API_URL: url, PREFECT_HOME: home, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
        ),
    ):
        _check_client(url)
        try:
            yield url
        finally:
            _send_what_is_queued()


def _check_client(url: str) -> None:
    """Raise SpecError if Prefect's client cannot reach the temporary server: flows retry for minutes."""
    for _ in range(_TRIES):
        if (reason := client_problem()) is None:
            return
        time.sleep(_PAUSE_SECONDS)  # one refusal may be this machine's load
    raise SpecError(f"Prefect's client does not reach the temporary server at {url}: {reason}")


def is_healthy(url: str) -> bool:
    """Whether a Prefect API answers at `url`."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=_ANSWER_SECONDS) as answer:
            return answer.status == 200 and answer.read(16).strip() == b"true"
    except (OSError, http.client.HTTPException, ValueError):
        return False


def require_answer(url: str, why_unset: str) -> None:
    """Raise SpecError, within seconds, unless Prefect's client gets an answer at `url`, the configured
    PREFECT_API_URL.
    """
    if (reason := problem_at(url)) is None:
        return
    by_variable = bool(os.environ.get("PREFECT_API_URL"))
    source = "" if by_variable else f" (from {profiles_path()}, or prefect.toml or .env of this folder)"
    unset = "unset it" if by_variable else "set PREFECT_API_URL= to nothing"
    raise SpecError(
        f"PREFECT_API_URL = {url}{source}: no Prefect server answers there: {reason}. Start it, or "
        f"{unset} {why_unset}"
    )


def problem_at(url: str) -> str | None:
    """Why Prefect's own client gets no answer at `url`, within seconds; None if it gets one."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: url}):
        return client_problem()


def client_problem() -> str | None:
    """Why Prefect's own client gets no answer from the configured API; None if it gets one."""
    from prefect.client.orchestration import get_client
    from prefect.settings import (
        PREFECT_API_REQUEST_TIMEOUT,
        PREFECT_API_URL,
        PREFECT_CLIENT_MAX_RETRIES,
        temporary_settings,
    )

    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: _ANSWER_SECONDS}):
        try:
            with get_client(sync_client=True) as client:
                error = client.api_healthcheck()
        except Exception as refused:  # noqa: BLE001  (a client that cannot even be made: of any library below it, of any type)
            error = refused
    if error is None:
        return None
    reason = " ".join((str(error) or type(error).__name__).partition(" - For more")[0].split())
    return f"{reason}{_by_proxy(PREFECT_API_URL.value() or '')}"


def _by_proxy(url: str) -> str:
    """The proxy that a request for `url` went to, and how to avoid it; empty without a proxy."""
    address = urllib.parse.urlsplit(url)
    host = address.hostname or ""
    if urllib.request.proxy_bypass(host):
        return ""
    asked = [
        name
        for name in proxy_variables(os.environ)
        if name.upper() in (f"{address.scheme.upper()}_PROXY", "ALL_PROXY")
    ]
    return (
        f". {' and '.join(asked)} sent the request to a proxy: add {host} to NO_PROXY to go without"
        if asked
        else ""
    )


def _send_what_is_queued() -> None:
    """Send queued log lines and events, before the server ends."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=SERVER_STOP_SECONDS)
    EventsWorker.drain_all(timeout=SERVER_STOP_SECONDS)


@contextmanager
def free_home(parent: Path) -> Iterator[tuple[Path, int]]:
    """The first home that no other run uses, and the descriptor that holds its flock. Two servers on one
    SQLite file block each other.
    """
    for number in count():
        home = parent / f"temporary-{number}"
        home.mkdir(parents=True, exist_ok=True)
        if (file := try_lock(home / "lock")) is not None:
            with file:
                yield home, file.fileno()
            return


@contextmanager
def _server(home: Path, lock: int, waiting: Waiting = say_waiting) -> Iterator[str]:
    """A Prefect server without UI on a free port of the loopback interface."""
    started = time.perf_counter()
    server_log = home / "server.log"
    for _ in range(_TRIES):
        port = free_port()
        process = _start(home, port, lock, server_log)
        try:
            url = f"http://127.0.0.1:{port}/api"
            with waiting(f"starting a temporary Prefect server, {SERVER_START_USUAL}"):
                is_up = comes_up(process, url)
            if is_up:
                log.info("temporary Prefect server ready in %.1f s", time.perf_counter() - started)
                yield url
                return
        finally:
            ended = process.poll()
            stop(process, SERVER_STOP_SECONDS)
        tail = "\n".join(server_log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        if _PORT_TAKEN not in tail.lower():
            break  # only another port can make a difference
    what = (
        f"did not answer within {SERVER_START_SECONDS:.0f} s"
        if ended is None
        else f"ended with status {ended} before it answered"
    )
    raise RuntimeError(f"the temporary Prefect server {what}; {server_log} ends with:\n{tail}")


def server_environment(home: Path) -> dict[str, str]:
    """The environment of a temporary server, without the user's own database, login or address."""
    others = {
        name: value
        for name, value in importing_ours(for_children(os.environ)).items()
        if not name.startswith("PREFECT_")
    }
    return {
        **others,
        **SETTINGS,
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_UI_ENABLED": "false",
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT__SERVER_FINAL": "1",
        "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
    }


def _start(home: Path, port: int, lock: int, server_log: Path) -> subprocess.Popen:
    command = [
        "-m",
        "uvicorn",
        "--factory",
        "flows.server.prefect_server:create_app",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with server_log.open("ab") as output:
        return subprocess.Popen(
            [*guarded("SIGTERM"), *command, "--log-level", "error", "--lifespan", "on"],
            env=server_environment(home),
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C ends the run, which still has to tell the server so
            pass_fds=(lock,),  # the home stays taken until this server is gone too
        )


def comes_up(process: subprocess.Popen, url: str) -> bool:
    """Wait until the API of a starting server answers; False if the server ended or took too long."""
    deadline = time.monotonic() + SERVER_START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if is_healthy(url):
            return True
        time.sleep(0.05)
    return False


def stop(process: subprocess.Popen, grace_seconds: float) -> None:
    """End a process and what it started: SIGTERM first, SIGKILL after `grace_seconds`."""
    end_trees([process], grace_seconds)
