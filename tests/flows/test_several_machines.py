"""Two machines with one remote store: what one finished, the other serves, finds by `last` and goes on from.

A machine is a store of its own.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from typer.testing import CliRunner

from flows.cli.main import app
from flows.inputs.specs import run_options
from flows.requantize import requantize
from schemas.runtime import RunOptions
from schemas.stages import STAGES
from stages.store.remote import open_remote
from stages.store.remote_housekeeping import find_unneeded_objects, remove_unneeded_objects
from stages.store.runs import find_run
from stages.store.store import open_store_at

SECRET = "a-secret-that-nobody-may-see"
CREDENTIALS = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "GOOGLE_SERVICE_ACCOUNT_KEY"),
    *("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN", "HF_TOKEN"),
)
SMALL = ("train.schedule.max_steps=12",)


@dataclass(frozen=True)
class Machines:
    """Two stores, their remote, and the same run on each."""

    first: Path
    second: Path
    url: str
    made: Any
    served: Any


@pytest.fixture(scope="module")
def machines(run_pipeline: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Machines:
    folder = tmp_path_factory.mktemp("machines")
    url = (folder / "shared").as_uri()
    with pytest.MonkeyPatch.context() as patch:
        for name in CREDENTIALS:
            patch.setenv(name, SECRET)
        made = run_pipeline(folder / "first", *SMALL, remote=url)
        served = run_pipeline(folder / "second", *SMALL, remote=url)
    return Machines(folder / "first", folder / "second", url, made, served)


def test_another_machine_is_served_every_stage(machines: Machines) -> None:
    assert machines.made.computed == list(STAGES)
    assert [state.name for state in machines.served.task_states.values()] == ["Cached"] * len(STAGES)
    assert machines.served.report.package == machines.made.report.package


def test_package_and_report_lie_on_the_machine_that_was_served(machines: Machines) -> None:
    report = machines.served.report
    for ref in (report.package.blob, report.package.script, report.published.html):
        assert (machines.second / ref.path).read_bytes() == (machines.first / ref.path).read_bytes()
    assert not (machines.second / report.merged.weights.path).exists()


def test_last_is_the_same_run_on_each_machine(machines: Machines) -> None:
    for store in (machines.first, machines.second):
        root = open_store_at(store, machines.url).runs_root()
        assert find_run(root, "last").run_id == machines.served.report.run_id
        assert find_run(root, machines.made.report.run_id) == machines.made.report


def test_compare_and_sample_know_the_runs_of_all_machines(machines: Machines, tmp_path: Path) -> None:
    place = ("--remote", machines.url, "--store", str(tmp_path / "third"))
    made, served = machines.made.report, machines.served.report
    written = invoke("sample", "last", "--tokens", "5", *place)
    assert written["source"] == served.name
    page = tmp_path / "compared.html"
    found = invoke("compare", made.run_id, served.run_id, "--html", str(page), *place)
    assert [run["run_id"] for run in found["runs"]] == [made.run_id, served.run_id]
    assert "<svg" in page.read_text(encoding="utf-8")  # their curves came from the remote


def test_credentials_of_the_environment_are_kept_nowhere(machines: Machines) -> None:
    """Neither in parameters, logs and artifacts on the server nor in a file of a store or of the remote."""
    with get_client(sync_client=True) as client:
        known = [*client.read_flow_runs(limit=200), *client.read_artifacts(limit=200)]
        told = [item.model_dump_json() for item in (*known, *client.read_logs(limit=200))]
    assert any(machines.url in text for text in told)
    files = [path.read_bytes() for path in machines.first.parent.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert not [text for text in told if SECRET in text]
    assert not [content for content in files if SECRET.encode() in content]


def invoke(*words: str) -> Any:
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_third_machine_shows_and_lists_the_runs(machines: Machines, tmp_path: Path) -> None:
    place = ("--store", str(tmp_path / "third"), "--remote", machines.url)
    shown = invoke("show", "last", *place)
    assert shown["run_id"] == machines.served.report.run_id
    assert (Path(shown["package_folder"]) / "model.fwz").exists()
    assert Path(shown["report_html"]).exists()
    both = [machines.made.report.run_id, machines.served.report.run_id]
    # The server of the tests may know unfinished runs of others; they are listed too.
    assert [entry["run_id"] for entry in invoke("runs", *place) if entry["run_id"] in both] == both
    assert invoke("verify", *place)["damage"] == []
    assert invoke("verify", "--shared", *place) == {"store": machines.url, "damage": []}


@pytest.mark.slow
def test_another_machine_quantizes_the_last_run_again(machines: Machines, tmp_path: Path, api: str) -> None:
    options = RunOptions(store=str(tmp_path / "third"), remote=machines.url, retries=0)
    state = requantize("last", bits=("int4",), options=options, return_state=True)
    [row_before, *_], [report] = state.result()
    assert row_before
    assert report.merged == machines.made.report.merged
    assert report.size.total_bytes < machines.made.report.size.total_bytes
    here = open_store_at(machines.first, machines.url)
    assert find_run(here.runs_root(), report.run_id) == report


def test_housekeeping_of_the_remote_keeps_what_kept_runs_name(machines: Machines, tmp_path: Path) -> None:
    remote = open_remote(machines.url)
    assert find_unneeded_objects(remote, None, 24.0) == []
    remote.upload(b"nobody names it", f"blobs/00/{'0' * 64}", 15)
    remote.create("work/train/key/try/manifest", b'{"step": "step-1", "files": []}')
    remote.replace(
        "runs/older",
        machines.made.report.derive(run_id="older", created_at="2001-01-01T00:00:00+00:00", stages=())
        .model_dump_json()
        .encode(),
    )
    found = {item.path.as_posix(): item.reason for item in find_unneeded_objects(remote, None, 0.0)}
    abandoned = {
        f"blobs/00/{'0' * 64}": "a file that no record names",
        "work/train/key/try/manifest": "an unfinished result",
    }
    runs = len(remote.objects("runs/"))
    assert abandoned.items() <= found.items()
    assert "runs/older" not in found
    assert invoke("gc", "--shared", "--remote", machines.url, "--store", str(tmp_path))["items"] == []
    removed = remove_unneeded_objects(remote, runs - 1, 0.0)
    assert {"runs/older", *abandoned} <= {item.path.as_posix() for item in removed}
    assert invoke("verify", "--shared", "--remote", machines.url)["damage"] == []
    again = open_store_at(machines.second, machines.url)
    assert "older" not in {path.name for path in (again.runs_root() / "runs").iterdir()}
    for stage in machines.made.report.stages:
        assert again.find(STAGES[stage.stage], stage.key) is not None


def test_the_environment_names_the_remote_where_the_options_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRWAY_REMOTE", "s3://bucket/team")
    assert run_options(None).remote == "s3://bucket/team"
    assert run_options(RunOptions(remote=None)).remote is None
    assert run_options(RunOptions(retries=1)).remote == "s3://bucket/team"


@pytest.mark.parametrize("command", ["gc", "verify"])
def test_shared_without_a_remote_is_refused(command: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [command, "--shared", "--store", str(tmp_path)])
    assert result.exit_code == 2
    assert "--shared: names no remote store. Give its address by --remote" in result.stderr
