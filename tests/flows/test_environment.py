"""Prefect's surroundings: settings, a server for one run, and what happens to it."""

import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from flows import environment
from schemas.errors import SpecError

ROOT = Path(__file__).parents[2]

HOLD_A_SERVER = """
import sys, time
from pathlib import Path
from flows.environment import prefect_api
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
    assert told == environment.SETTINGS


def test_prefect_knows_every_setting_by_this_name() -> None:
    from prefect.settings import Settings
    from prefect.settings.models.root import _get_settings_accessors

    assert set(environment.SETTINGS) <= set(_get_settings_accessors(Settings))


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "mine"))
    monkeypatch.setenv("PREFECT_SERVER_UI_V2_ENABLED", "true")
    environment.settings_first(tmp_path / "ours")
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


def test_two_runs_at_once_get_a_home_each_and_a_later_one_gets_the_first_again(tmp_path: Path) -> None:
    with environment._free_home(tmp_path) as (first, _), environment._free_home(tmp_path) as (second, _):
        assert first != second
    with environment._free_home(tmp_path) as (third, _):
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
        with environment._free_home(tmp_path / "prefect") as (home, _):
            if home.name == "temporary-0":
                return
        time.sleep(0.1)
    pytest.fail("the home of the dead server is still taken")


def _bare() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
