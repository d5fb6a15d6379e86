"""Prefect's surroundings: our own home, nothing that calls outside, and a server, running already or only for one run.

`settings_first` must come before Prefect is imported, because Prefect reads its environment once. prefect.toml says the same
for plain `prefect` commands in the checkout; a test keeps the two equal.
"""

import logging
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path

from schemas.errors import SpecError
from stages.launch import guarded
from stages.locks import try_lock
from stages.process_tree import end_trees

log = logging.getLogger(__name__)

SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_UI_V2_ENABLED": "false",  # its pages call Amplitude whatever the settings say
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}
_OWN_SERVER_ONLY = {"PREFECT_SERVER_EPHEMERAL_ENABLED": "false"}  # Prefect's own temporary server outlives a killed run
SERVER_START_SECONDS = 90.0
SERVER_START_USUAL = "3 to 20 s"
SERVER_STOP_SECONDS = 5.0
_TRIES = 3

Waiting = Callable[[str], AbstractContextManager[None]]
"""Called with what is waited for; the wait is the block."""


def settings_first(home: Path) -> None:
    """Put Prefect's settings into the environment, those of the user first. `home` is where Prefect keeps its files."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    for name, value in (SETTINGS | _OWN_SERVER_ONLY).items():
        os.environ.setdefault(name, value)
    profiles = Path.home() / ".prefect" / "profiles.toml"
    if "PREFECT_HOME" not in os.environ and profiles.is_file():
        os.environ.setdefault("PREFECT_PROFILES_PATH", str(profiles))  # may name the user's server
    os.environ.setdefault("PREFECT_HOME", str(home))
    Path(os.environ["PREFECT_HOME"]).expanduser().mkdir(parents=True, exist_ok=True)


@contextmanager
def say_waiting(what: str) -> Iterator[None]:
    """A log line at the beginning of a wait."""
    log.info("%s", what)
    yield


@contextmanager
def prefect_api(store: Path, waiting: Waiting = say_waiting) -> Iterator[str]:
    """Address of a Prefect API for the time of the block: the configured server's, else a temporary one's.

    `waiting` is entered while the temporary server starts, with what is waited for and how long that takes. The server
    keeps its database under `<store>/prefect/temporary-N`, one N for each run at the same time, and ends with the block, or
    with this process however that ends. Raises SpecError when the configured server is silent.
    """
    settings_first(store / "prefect" / "home")
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, PREFECT_HOME, temporary_settings

    if url := PREFECT_API_URL.value():
        if not is_healthy(url):
            raise SpecError(f"PREFECT_API_URL = {url}: no Prefect server answers there. Start it, or unset it to run with a temporary one")
        yield url
        return
    with (
        _free_home(store / "prefect") as (home, lock),
        _server(home, lock, waiting) as url,
        # Nobody watches this server for lost heartbeats, and waiting for the heartbeat thread costs every flow a second.
        temporary_settings({PREFECT_API_URL: url, PREFECT_HOME: home, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        try:
            yield url
        finally:
            _send_what_is_queued()


def is_healthy(url: str) -> bool:
    """Whether a Prefect API answers at `url`."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=5) as answer:
            return answer.status == 200
    except (OSError, urllib.error.URLError, ValueError):
        return False


def _send_what_is_queued() -> None:
    """Log lines and events leave in the background; the server must not go before they arrived."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=SERVER_STOP_SECONDS)
    EventsWorker.drain_all(timeout=SERVER_STOP_SECONDS)


@contextmanager
def _free_home(parent: Path) -> Iterator[tuple[Path, int]]:
    """The first home that no other run uses, and the descriptor whose flock keeps it: two servers on one SQLite file block each other."""
    for number in count():
        home = parent / f"temporary-{number}"
        home.mkdir(parents=True, exist_ok=True)
        if (file := try_lock(home / "lock")) is not None:
            with file:
                yield home, file.fileno()
            return


@contextmanager
def _server(home: Path, lock: int, waiting: Waiting) -> Iterator[str]:
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
            stop(process, SERVER_STOP_SECONDS)
    tail = "\n".join(server_log.read_text(errors="replace").splitlines()[-15:])
    raise RuntimeError(f"the temporary Prefect server did not start within {SERVER_START_SECONDS:.0f} s; {server_log} ends with:\n{tail}")


def _start(home: Path, port: int, lock: int, server_log: Path) -> subprocess.Popen:
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_UI_ENABLED": "false",
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT__SERVER_FINAL": "1",
        "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
    }
    environment.pop("PREFECT_API_URL", None)
    command = ["-m", "uvicorn", "--factory", "prefect.server.api.server:create_app", "--host", "127.0.0.1", "--port", str(port)]
    with server_log.open("ab") as output:
        return subprocess.Popen(
            [*guarded("SIGTERM"), *command, "--log-level", "error", "--lifespan", "on"],
            env=environment,
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C ends the run, which still has to tell the server so
            pass_fds=(lock,),  # the home stays taken until this server is gone too
        )


def comes_up(process: subprocess.Popen, url: str) -> bool:
    """Wait until the API of a starting server answers; False when the server ended or took too long."""
    deadline = time.monotonic() + SERVER_START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if is_healthy(url):
            return True
        time.sleep(0.05)
    return False


def stop(process: subprocess.Popen, grace_seconds: float) -> None:
    """End a process and what it started: asked first, made to after `grace_seconds`."""
    end_trees([process], grace_seconds)


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int) -> bool:
    """Whether a server could listen on `port` of the loopback interface; never on a number that is no port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            return False
        return True
