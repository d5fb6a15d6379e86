"""What `fairway up` refuses before it starts anything."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from flows.inputs.specs import run_options
from flows.server import environment, up
from flows.server.environment import port_is_free
from schemas.errors import SpecError


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], int]]:
    """`port(offset)`: a port of which only that plus `offset` is taken.

    Whatever would be started fails the test.
    """
    for name in ("_server", "_process", "_deploy"):
        monkeypatch.setattr(up, name, lambda *_, name=name: pytest.fail(f"{name} was reached"))
    before = dict(os.environ)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield lambda offset: taken.getsockname()[1] - offset
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize(
    ("offset", "named"), [(0, "another program listens there"), (1, "the next one is for the reports")]
)
def test_a_taken_port_is_refused_before_anything_is_started(
    offset: int, named: str, port: Callable[[int], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setattr(up, "is_healthy", lambda url: False)
    chosen = port(offset)
    if not port_is_free(chosen) and offset:
        pytest.skip(f"{chosen} happens to be taken as well")
    with (
        pytest.raises(SpecError, match=rf"--port = {chosen}: {named}"),
        up.everything_up(tmp_path, chosen, 180),
    ):
        pass


def test_a_second_one_of_the_same_folder_is_refused_before_it_settles_the_first_ones_runs(
    port: Callable[[int], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.server import setup as server

    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setattr(up, "require_answer", lambda url, remedy: None)
    monkeypatch.setattr(up, "is_healthy", lambda url: True)
    monkeypatch.setattr(server, "mark_stale_runs", lambda: pytest.fail("settled"))
    with (
        up._only_one(tmp_path / f"{server.worker_name().split()[-1]}.lock", "taken"),
        pytest.raises(SpecError, match=rf"of .* is running already \(process {os.getpid()}\)"),
        up.everything_up(tmp_path, port(5), 180),
    ):
        pass


def test_a_port_without_a_next_one_is_refused() -> None:
    answer = CliRunner().invoke(app, ["up", "--port", "65535"])
    assert answer.exit_code == 2
    assert "65534" in answer.output
    assert not port_is_free(65_536)


def test_an_installed_program_serves_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert environment.served_folder() == environment.ROOT  # of a checkout
    monkeypatch.setattr(environment, "ROOT", tmp_path / "site-packages")
    monkeypatch.chdir(tmp_path)
    assert environment.served_folder() == tmp_path


def test_a_run_of_the_worker_finds_relative_paths_in_the_served_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setenv("FAIRWAY_FOLDER", str(tmp_path))
    run_options(None)
    assert Path.cwd() == tmp_path


def test_the_deployments_lie_beside_the_program() -> None:
    """Where a wheel has them, too."""
    assert up.PREFECT_FILE.read_bytes() == (environment.ROOT / "prefect.yaml").read_bytes()
