"""Proxies, settings and files that Prefect would trip over, and the schedule on the nights when clocks
are put forward or back.
"""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import yaml

from flows.server import addresses, environment, settings
from schemas.errors import SpecError
from schemas.tokenize_corpus import HuggingFaceCorpus
from stages.corpora import huggingface
from stages.processes.surroundings import UNUSABLE_PROXY, leave_out_unusable_proxies, reach_loopback
from stages.store.hashing import FileHashes
from stages.store.store import Store

ROOT = Path(__file__).parents[2]
PROXY = "http://127.0.0.1:9"
PROXIES = (
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
)

# Before Prefect is imported, which reads its environment once.
_HOME = tempfile.TemporaryDirectory(prefix="fairway-surroundings-", ignore_cleanup_errors=True)


@pytest.fixture(autouse=True)
def bare() -> Iterator[None]:
    """No proxy and no server but what a test sets, and afterwards everything as it was."""
    before = dict(os.environ)
    for name in (*PROXIES, UNUSABLE_PROXY, "PREFECT_PROFILES_PATH", "PREFECT_API_URL"):
        os.environ.pop(name, None)
    os.environ.setdefault("PREFECT_HOME", _HOME.name)
    yield
    os.environ.clear()
    os.environ.update(before)


@contextmanager
def listening(family: socket.AddressFamily, host: str) -> Iterator[int]:
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        try:
            listener.bind((host, 0))
        except OSError:
            pytest.skip(f"this machine has no {host}")
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    "said", ["", "corp.example,.local", "*.corp,10.0.0.0/8", "fd00::/8,[::1],fe80::1/64", "localhost"]
)
@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_loopback_is_reached_without_a_proxy_whatever_no_proxy_says(
    name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for proxy in ("HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(proxy, PROXY)
    monkeypatch.setenv(name, said)
    reach_loopback(os.environ)
    kept = [item for item in said.split(",") if item and ":" not in item]
    assert os.environ["NO_PROXY"].split(",")[: len(kept)] == kept
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"]
    assert all(urllib.request.proxy_bypass(host) for host in ("127.0.0.1", "localhost", "::1"))
    assert not urllib.request.proxy_bypass("example.com")
    with (
        listening(socket.AF_INET, "127.0.0.1") as port,
        httpx.Client(timeout=0.5) as client,
        pytest.raises(httpx.ReadTimeout),
    ):
        client.get(
            f"http://127.0.0.1:{port}/"
        )  # reached: it listens and says nothing; nobody listens where the proxy should be


def test_every_use_of_prefect_begins_with_a_way_to_loopback(tmp_path: Path) -> None:
    os.environ["HTTP_PROXY"] = PROXY
    settings.settings_first(tmp_path)
    assert urllib.request.proxy_bypass("127.0.0.1")
    assert "127.0.0.1" in environment.server_environment(tmp_path)["NO_PROXY"]


def test_both_spellings_of_no_proxy_are_kept() -> None:
    given = {"NO_PROXY": "a.example", "no_proxy": "b.example"}
    reach_loopback(given)
    assert {"a.example", "b.example"} <= {*given["no_proxy"].split(",")}
    before = dict(given)
    reach_loopback(given)
    assert given == before


@pytest.mark.parametrize("value", ["socks5://proxy:1", "socks://proxy:1/", "ftp://proxy"])
def test_a_proxy_that_the_http_client_refuses_is_left_out_and_named(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("all_proxy", value)
    with pytest.raises((ImportError, ValueError)):
        httpx.Client()
    [said] = leave_out_unusable_proxies(os.environ)
    assert said.startswith(f"all_proxy = {value.partition('://')[0]}://")
    httpx.Client().close()


def test_what_would_have_left_by_an_unusable_proxy_does_not_leave_without_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://user:secret@proxy:1")
    said = leave_out_unusable_proxies(os.environ)
    with pytest.raises(SpecError, match=r"ALL_PROXY = socks5://.*HTTPS_PROXY") as refused:
        huggingface.locate(HuggingFaceCorpus(kind="huggingface", dataset="some/text"), FileHashes(None))
    assert "secret" not in f"{said}{refused.value}"


def test_usable_proxies_stay() -> None:
    given = {"HTTP_PROXY": "http://proxy:1", "https_proxy": "https://proxy:1", "ALL_PROXY": "proxy:3128"}
    assert leave_out_unusable_proxies(given) == []
    assert len(given) == 3


def test_a_silent_server_is_named_with_the_proxy_that_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", PROXY)
    url = "http://prefect.example:4200/api"
    monkeypatch.setenv("PREFECT_API_URL", url)
    started = time.monotonic()
    with pytest.raises(SpecError) as said:
        environment.require_answer(url, "to run with a temporary one")
    assert time.monotonic() - started < 30
    assert f"PREFECT_API_URL = {url}: no Prefect server answers there" in str(said.value)
    assert "HTTP_PROXY sent the request to a proxy: add prefect.example to NO_PROXY" in str(said.value)


def test_a_silent_server_of_a_profile_is_named_with_where_it_comes_from() -> None:
    with pytest.raises(
        SpecError, match=r"\(from .*profiles.toml, .*Connection refused.*set PREFECT_API_URL= to nothing"
    ):
        environment.require_answer("http://127.0.0.1:9/api", "to run with a temporary one")


def test_another_program_on_the_port_is_no_prefect_server() -> None:
    with subprocess.Popen([sys.executable, "-c", ANSWERS_OK], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        assert not environment.is_healthy(f"http://127.0.0.1:{port}/api")
        process.kill()


ANSWERS_OK = """
from http.server import *
class Ok(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'{"database": "ok"}')
server = HTTPServer(("127.0.0.1", 0), Ok)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.mark.parametrize("content", [b'active = "x', b"\xff\xfe\x00"])
def test_a_broken_file_of_profiles_is_left_out(
    content: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "home" / ".prefect").mkdir(parents=True)
    (tmp_path / "home" / ".prefect" / "profiles.toml").write_bytes(content)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PREFECT_HOME")
    settings.settings_first(tmp_path / "ours")
    assert not Path(os.environ["PREFECT_PROFILES_PATH"]).exists()


def test_an_empty_file_of_profiles_and_a_home_that_is_none_are_no_trouble(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".prefect").mkdir()
    (tmp_path / ".prefect" / "profiles.toml").touch()
    monkeypatch.delenv("PREFECT_HOME")
    for home in (tmp_path, tmp_path / "nowhere"):
        monkeypatch.setenv("HOME", str(home))
        settings.settings_first(tmp_path / "ours")
        monkeypatch.delenv("PREFECT_HOME")
    assert os.environ["PREFECT_PROFILES_PATH"] == str(tmp_path / ".prefect" / "profiles.toml")


def test_a_prefect_home_that_cannot_be_made_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(SpecError, match=r"PREFECT_HOME = .*file/home: .*Set it to one that you may write"):
        settings.settings_first(tmp_path)


def test_a_prefect_setting_that_prefect_refuses_is_named_by_its_variable(tmp_path: Path) -> None:
    Store(tmp_path).close()
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "runs", "--store", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PREFECT_SERVER_LOGGING_LEVEL": "ERROR", "PREFECT_LOGGING_LEVEL": "rubbish"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "PREFECT_LOGGING_LEVEL" in done.stderr
    assert "Prefect refuses this setting" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_temporary_server_takes_nothing_from_settings_for_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    theirs = {
        "PREFECT_API_URL": "http://theirs/api",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql+asyncpg://them@theirs/prefect",
        "PREFECT_API_DATABASE_CONNECTION_URL": "postgresql+asyncpg://them@theirs/prefect",
        "PREFECT_SERVER_API_AUTH_STRING": "them:secret",
        "PREFECT_SERVER_API_BASE_PATH": "/theirs",
        "PREFECT_PROFILES_PATH": "/theirs/profiles.toml",
        "RANK": "3",
    }
    for name, value in theirs.items():
        monkeypatch.setenv(name, value)
    told = environment.server_environment(tmp_path)
    assert not theirs.items() & told.items()
    assert settings.SETTINGS.items() <= told.items()
    assert told["PREFECT_HOME"] == str(tmp_path)
    assert not Path(told["PREFECT_PROFILES_PATH"]).exists()


@pytest.mark.parametrize(
    ("says", "starts"), [("no module of that name", 1), ("error while binding: address already in use", 3)]
)
def test_a_temporary_server_that_ends_at_once_is_told_within_seconds(
    says: str, starts: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started = []

    def start(home: Path, port: int, lock: int, server_log: Path) -> subprocess.Popen:
        started.append(port)
        with server_log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-c", f"print({says!r}); raise SystemExit(3)"], stdout=output
            )

    monkeypatch.setattr(environment, "_start", start)
    with (
        pytest.raises(RuntimeError, match=f"(?s)ended with status 3 before it answered.*{says}"),
        environment._server(tmp_path, 0),
    ):
        pass
    assert len(started) == starts


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_port_is_taken_in_either_family(family: socket.AddressFamily, host: str) -> None:
    with listening(family, host) as port:
        assert not addresses.port_is_free(port)
    assert addresses.port_is_free(port)


@pytest.mark.parametrize("night", [datetime(2027, 3, 28, tzinfo=UTC), datetime(2027, 10, 31, tzinfo=UTC)])
def test_the_schedule_fires_once_a_week_on_the_nights_when_clocks_change(night: datetime) -> None:
    from prefect.server.schemas.schedules import CronSchedule

    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    [given] = [schedule for deployment in deployments for schedule in deployment.get("schedules", [])]
    schedule = CronSchedule(cron=given["cron"], timezone=given["timezone"])
    # The scheduler asks again and again, from whatever time it is: all answers together are the firings.
    begins = [night - timedelta(days=8) + timedelta(minutes=17 * step) for step in range(17 * 24 * 60 // 17)]
    fired = sorted(
        {
            date.astimezone(UTC)
            for begin in begins[::7] + begins[900:1000]
            for date in asyncio.run(schedule.get_dates(2, start=begin))
        }
    )
    apart = [later - earlier for earlier, later in zip(fired, fired[1:], strict=False)]
    assert len(fired) >= 3
    assert all(timedelta(days=7, hours=-1) <= gap <= timedelta(days=7, hours=1) for gap in apart), fired
