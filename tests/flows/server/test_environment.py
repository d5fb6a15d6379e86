"""Prefect's surroundings: settings, a server for one run, and what happens to it."""

import io
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

from flows.cli.live import live_output, waiting_on
from flows.server import environment, settings
from schemas.errors import SpecError

ROOT = Path(__file__).parents[3]

HOLD_A_SERVER = """
import sys, time
from pathlib import Path
from flows.server.environment import prefect_api
with prefect_api(Path(sys.argv[1])) as url:
    print(url, flush=True)
    time.sleep(600)
"""


def test_prefect_toml_says_the_same_as_the_command_line() -> None:
    def flat(table: dict, prefix: str) -> dict[str, str]:
        found = {}
        for key, value in table.items():
            name = f"{prefix}_{key.upper()}"
            found |= flat(value, name) if isinstance(value, dict) else {name: str(value).lower()}
        return found

    told = flat(tomllib.loads((ROOT / "prefect.toml").read_text()), "PREFECT")
    assert told.pop("PREFECT_HOME") == ".prefect"
    assert told == settings.SETTINGS


def test_prefect_knows_every_setting_by_this_name() -> None:
    from prefect.settings import Settings
    from prefect.settings.models.root import _get_settings_accessors

    assert set(settings.SETTINGS) <= set(_get_settings_accessors(Settings))


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "mine"))
    monkeypatch.setenv("PREFECT_SERVER_UI_V2_ENABLED", "true")
    settings.settings_first(tmp_path / "ours")
    assert os.environ["PREFECT_HOME"] == str(tmp_path / "mine")
    assert os.environ["PREFECT_SERVER_UI_V2_ENABLED"] == "true"
    assert not (tmp_path / "ours").exists()


def test_a_configured_server_that_is_silent_is_named(tmp_path: Path) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    silent = "http://127.0.0.1:9/api"
    with (
        temporary_settings({PREFECT_API_URL: silent}),
        pytest.raises(SpecError, match="no Prefect server answers"),
        environment.prefect_api(tmp_path),
    ):
        pass


def test_a_configured_server_is_used_and_none_is_started(api: str, tmp_path: Path) -> None:
    with environment.prefect_api(tmp_path) as url:
        assert url == api
    assert not (tmp_path / "prefect" / "temporary-0").exists()


SLOW_SERVER = """
import sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
class Healthy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"true")
    def log_message(self, *_):
        pass
time.sleep(2.5)
HTTPServer(("127.0.0.1", int(sys.argv[1])), Healthy).serve_forever()
"""


@pytest.mark.parametrize("is_terminal", [False, True])
def test_while_the_temporary_server_starts_it_says_so_and_how_long_that_takes(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def start(home: Path, port: int, lock: int, server_log: Path) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-S", "-c", SLOW_SERVER, str(port)])

    healthy, seen = environment.is_healthy, list[str]()

    def look(url: str) -> bool:
        time.sleep(0.1)
        seen.append(output.getvalue())
        return healthy(url)

    output = io.StringIO()
    monkeypatch.setattr(output, "isatty", lambda: is_terminal, raising=False)
    console = Console(file=output, force_terminal=is_terminal, width=80, color_system=None)
    monkeypatch.setattr(environment, "_start", start)
    monkeypatch.setattr(environment, "is_healthy", look)
    with live_output(console), environment._server(tmp_path, 0, waiting_on(console)) as url:
        assert healthy(url)
        ready = output.getvalue()
    assert len(seen) > 5
    assert "starting a temporary Prefect server, 3 to 20 s" in seen[3]
    assert "ready" not in seen[3]
    assert "temporary Prefect server ready in" in ready
    if is_terminal:
        assert "0:00:01" in seen[-1]  # the seconds so far: it is alive
    else:
        assert ready.count("starting") == 1


def test_two_runs_at_once_get_a_home_each_and_a_later_one_gets_the_first_again(tmp_path: Path) -> None:
    with environment.free_home(tmp_path) as (first, _), environment.free_home(tmp_path) as (second, _):
        assert first != second
    with environment.free_home(tmp_path) as (third, _):
        assert third == first


def test_the_server_of_a_killed_run_ends_and_frees_its_home(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD_A_SERVER, str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=_bare())
    assert holder.stdout is not None
    url = holder.stdout.readline().strip()
    assert environment.is_healthy(url)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    deadline = time.monotonic() + 30
    while environment.is_healthy(url) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not environment.is_healthy(url)
    while time.monotonic() < deadline:
        with environment.free_home(tmp_path / "prefect") as (home, _):
            if home.name == "temporary-0":
                return
        time.sleep(0.1)
    pytest.fail("the home of the dead server is still taken")


def _bare() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
