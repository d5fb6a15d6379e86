"""What `fairway up` refuses before it starts anything."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from pkgutil import resolve_name

import pytest
import yaml
from typer.testing import CliRunner

from flows.cli.main import app
from flows.inputs.specs import run_options
from flows.server import environment, up
from flows.server.addresses import port_is_free
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
        up.everything_up(tmp_path, up.Server(chosen, 180)),
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
        up.everything_up(tmp_path, up.Server(port(5), 180)),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--worker-only", "--port", "4300"), "--port: belongs to the server"),
        (("--worker-only", "--database", "postgresql://h/n"), "--database: belongs to the server"),
        (("--worker-only",), "--worker-only: needs the server. Give --server or PREFECT_API_URL"),
        (("--server", "http://10.0.0.1:4200"), "--server: is for --worker-only"),
        (("--host", "0.0.0.0"), "--host = 0.0.0.0: give one address of this machine"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_anything_is_started(
    options: tuple[str, ...], message: str, port: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    answer = CliRunner().invoke(app, ["up", *options])
    assert answer.exit_code == 2
    assert message in answer.output


def test_a_worker_alone_refuses_a_server_that_does_not_answer(
    port: Callable[[int], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    with (
        pytest.raises(
            SpecError, match=r"^server = http://127.0.0.1:1/api: no Prefect server answers there: .*111"
        ),
        up.worker_up(tmp_path, "http://127.0.0.1:1/api", 1),
    ):
        pass


def test_whoever_opens_the_server_to_others_is_told_what_they_can_do(
    port: Callable[[int], int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(up, "is_healthy", lambda url: False)
    taken = port(0)
    answer = CliRunner().invoke(
        app, ["up", "--host", "127.0.0.1", "--port", str(taken), "--store", str(tmp_path)]
    )
    assert "network private" not in answer.output
    monkeypatch.setattr(up, "port_is_free", lambda port, host: False)
    answer = CliRunner().invoke(
        app, ["up", "--host", "127.0.0.2", "--port", str(taken), "--store", str(tmp_path)]
    )
    told = " ".join(answer.output.split())
    assert f"whoever reaches 127.0.0.2, ports {taken} and {taken + 1}, can start runs" in told
    assert "no login is asked for: PREFECT_SERVER_API_AUTH_STRING=user:password sets one" in told
    assert "no remote store: the machines do not share results" in told


@pytest.mark.parametrize(("runs", "limit"), [(None, []), (3, ["--limit", "3"])])
def test_the_worker_takes_as_many_runs_as_asked(
    runs: int | None, limit: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = list[list[str]]()

    def process(name: str, home: Path, grace_seconds: float, command: list[str]) -> AbstractContextManager:
        started.append(command)
        return nullcontext()

    monkeypatch.setattr(up, "_process", process)
    with ExitStack() as stack:
        up._start_worker(stack, tmp_path, runs)
    [command] = started
    assert command[command.index("--name") + 2 :] == limit


def test_the_folder_of_a_run_is_that_of_the_machine_that_runs_it() -> None:
    """Not the folder of the machine that made the deployment, which Prefect writes into it otherwise."""
    [step] = yaml.safe_load(up.PREFECT_FILE.read_text())["pull"]
    [(name, inputs)] = step.items()
    assert resolve_name(name)(**inputs) == {"directory": str(environment.ROOT)}


def test_the_deployments_lie_beside_the_program() -> None:
    """Where a wheel has them, too."""
    assert up.PREFECT_FILE.read_bytes() == (environment.ROOT / "prefect.yaml").read_bytes()
