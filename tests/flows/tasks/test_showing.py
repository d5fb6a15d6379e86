"""What is only for show never fails a run, and every flow is shown."""

import importlib
import logging
import pkgutil
from pathlib import Path

import httpx
import pytest
import yaml
from prefect import Flow
from prefect.exceptions import ObjectAlreadyExists

import flows
from flows.tasks import stage_task as tasks
from flows.tasks.showing import only_shown

SILENT = httpx.ConnectError("connection refused")


@pytest.mark.parametrize("error", [SILENT, ObjectAlreadyExists(SILENT)])
def test_a_server_that_does_not_say_who_trains_stops_no_training(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def training_slot_holders() -> list[str]:
        raise error

    monkeypatch.setattr(tasks, "training_slot_holders", training_slot_holders)
    with caplog.at_level(logging.WARNING):
        tasks._say_who_trains("train")
    assert (
        f"whom train waits for: the server did not answer as expected ({type(error).__name__})" in caplog.text
    )


def test_a_fault_of_ours_is_no_fault_of_the_server() -> None:
    with pytest.raises(ZeroDivisionError), only_shown("a picture"):
        1 / 0  # noqa: B018


def test_the_names_of_flows_are_those_of_the_flows_and_every_deployment_is_one() -> None:
    modules = [
        importlib.import_module(f"flows.{module.name}") for module in pkgutil.iter_modules(flows.__path__)
    ]
    found = {item.name for module in modules for item in vars(module).values() if isinstance(item, Flow)}
    assert sorted(flows.FLOW_NAMES) == sorted(found)
    deployments = yaml.safe_load((Path(flows.__file__).parents[1] / "prefect.yaml").read_text())[
        "deployments"
    ]
    assert {entry["name"] for entry in deployments} <= set(flows.FLOW_NAMES)
