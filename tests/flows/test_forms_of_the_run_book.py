"""The deployments of the run book, and the plan on a run's page, as the flows behind the forms."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from flows.forget_run import forget_run
from flows.inputs.specs import plan_run
from flows.label_run import label_run
from flows.pipeline import pipeline
from flows.tasks import plan_artifact
from schemas.errors import SpecError
from schemas.runtime import RunOptions
from stages.store.notes import load_notes
from stages.store.runs import list_reports
from stages.store.store import Store


@pytest.fixture
def options(root: Path) -> RunOptions:
    return RunOptions(store=str(root))


def artifact(key: str) -> str:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
    newest = max(found, key=lambda item: item.created)
    assert isinstance(newest.data, str)
    return newest.data


def test_a_form_adds_note_tags_and_pin_and_the_server_has_them_too(
    smoke_run: Any, options: RunOptions
) -> None:
    report = smoke_run.report
    label_run(run="last", note="the | first", tags=("baseline", "v/1"), pin="pinned", options=options)
    changed = label_run(run=report.name, remove_tags=("v/1",), pin="not pinned", options=options)
    assert changed == load_notes(Path(options.store), report.run_id)
    assert ([note.text for note in changed.notes], changed.tags) == (["the | first"], ("baseline",))
    assert not changed.pinned
    page = artifact("notes")
    assert all(text in page for text in (report.name, "`baseline`", "    the | first", "Not pinned"))
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(UUID(report.run_id)).tags == ["baseline"]


def test_an_empty_form_and_a_tag_that_is_not_there_change_nothing(options: RunOptions) -> None:
    with pytest.raises(SpecError, match="nothing would change"):
        label_run(run="last", note=" ", options=options)
    with pytest.raises(SpecError, match="TAG = other: the run has no such tag"):
        label_run(run="last", note="not kept", remove_tags=("other",), options=options)
    [report] = list_reports(Path(options.store))
    assert load_notes(Path(options.store), report.run_id).notes == ()


def test_a_run_is_forgotten_once_its_name_is_typed_again(smoke_run: Any, options: RunOptions) -> None:
    root, name = Path(options.store), smoke_run.report.name
    listed = forget_run(run=name, options=options)
    page = artifact("forget")
    assert f"type {name} into confirm" in page
    assert "| stages/train/" in page
    with pytest.raises(SpecError, match=f"confirm = smoke: is not the name .* Type {name}"):
        forget_run(run=name, confirm="smoke", options=options)
    assert len(list_reports(root)) == 1
    with Store(root), pytest.raises(Exception, match="a run is in progress"):
        forget_run(run=name, confirm=name, options=options)
    assert len(list_reports(root)) == 1
    assert forget_run(run=name, confirm=f" {name} ", options=options) == listed
    assert list_reports(root) == []
    assert not any(Path(path).exists() for path in listed)


def test_a_run_of_a_form_shows_its_plan_before_anything_else(
    smoke_run: Any, options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_artifact, "deployment", SimpleNamespace(id="of-a-form"))
    state = pipeline("smoke", options=options, return_state=True)
    assert state.name == "Completed", state.message
    [with_plan] = [item for item in _artifacts_of(state) if item.key == "plan"]
    assert with_plan.created == min(item.created for item in _artifacts_of(state))
    assert smoke_run.report.name in with_plan.data
    assert with_plan.data.count("| stored |") == 9


def test_a_plan_that_cannot_be_made_costs_one_line(
    options: RunOptions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plan, store = plan_run("smoke", ()), Store(options.store)
    monkeypatch.setattr(plan_artifact, "deployment", SimpleNamespace(id="of-a-form"))

    def broken(*asked: Any) -> Any:
        raise ZeroDivisionError("by a mistake\nof ours")

    monkeypatch.setattr(plan_artifact, "plan_of_run", broken)
    plan_artifact.show_plan(plan, store, options)
    assert "not shown: the plan: ZeroDivisionError: by a mistake of ours" in caplog.text


def test_a_command_starts_without_a_plan(options: RunOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*given: Any) -> Any:
        raise AssertionError("planned")

    monkeypatch.setattr(plan_artifact, "plan_of_run", asked)
    plan_artifact.show_plan(plan_run("smoke", ()), Store(options.store), options)


def _artifacts_of(state: Any) -> list[Any]:
    from prefect.client.schemas.filters import FlowRunFilter

    run = FlowRunFilter(id={"any_": [state.state_details.flow_run_id]})
    with get_client(sync_client=True) as client:
        return client.read_artifacts(flow_run_filter=run)
