"""Flows that a server may start again after a loss."""

import inspect
from pathlib import Path
from pkgutil import resolve_name

import pytest
import yaml

from flows import TOLD_FLOWS

ROOT = Path(__file__).parents[3]
DEPLOYMENTS = {
    item["name"]: item["entrypoint"]
    for item in yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
}


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_every_deployed_flow_counts_its_losses_and_settles_what_the_last_try_left(name: str) -> None:
    """Else a run that ends its machine each time would come back for ever."""
    assert "begin_try(" in inspect.getsource(resolve_name(DEPLOYMENTS[name]).fn)


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_flows_that_train_or_measure_tell_their_end(name: str) -> None:
    flow = resolve_name(DEPLOYMENTS[name])
    told = [hook.__name__ for hook in (*flow.on_completion_hooks, *flow.on_failure_hooks)]
    assert told == (["tell_end"] * 2 if flow.name in TOLD_FLOWS else [])
