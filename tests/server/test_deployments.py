"""Deployments end to end: a real server and worker, runs by deployment, a schedule that fires, and a stop
in the middle.
"""

import re
import signal
import sqlite3
import statistics
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from presets import PRESETS
from schemas.stages import STAGES
from stages.seeds.ledger import find_ledger

pytestmark = pytest.mark.ui

BAD_VALUES = [
    ("pipeline", {"max_steps": -1}, "'max_steps'", "-1 is less than the minimum of 1"),
    (
        "pipeline",
        {"preset": "dmeo"},
        "'preset'",
        f"'dmeo' is not one of {list(PRESETS)}",
    ),
    ("pipeline", {"overrides": ["nonsense"]}, "'overrides[0]'", "'nonsense' does not match"),
    ("requantize", {"bits": ["int9"]}, "'bits[0]'", "'int9' is not one of"),
    ("requantize", {"clip_grids": ["1.0, 1.5"]}, "'clip_grids[0]'", "does not match"),
    ("export", {"author": "A", "name": "N", "github_id": "a b"}, "'github_id'", "'a b' does not match"),
    ("benchmark", {"tasks": ["two words"]}, "'tasks[0]'", "'two words' does not match"),
    ("benchmark", {"tasks": ["hellaswag"], "limit": 0}, "'limit'", "0 is less than the minimum of 1"),
    ("label-run", {"tags": ["two words"]}, "'tags[0]'", "'two words' does not match"),
    ("forget-run", {}, "", "'run' is a required property"),
    ("seed-validation", {"alpha": 1.5}, "'alpha'", "1.5 is"),
]


@pytest.mark.parametrize(("deployment", "parameters", "field", "reason"), BAD_VALUES)
def test_a_bad_value_is_refused_before_a_run_exists(
    served: Any, deployment: str, parameters: dict, field: str, reason: str
) -> None:
    answer = served.api.post(
        f"/deployments/{served.deployment(deployment)['id']}/create_flow_run", json={"parameters": parameters}
    )
    assert answer.status_code == 409
    assert field in answer.text
    assert reason in answer.json()["detail"]


def test_an_empty_field_is_taken(served: Any) -> None:
    """What a form sends for a field that was filled and emptied again; the run itself is not wanted."""
    answer = served.api.post(
        f"/deployments/{served.deployment('pipeline')['id']}/create_flow_run",
        json={
            "parameters": {
                "preset": "smoke",
                "max_steps": None,
                "limit_bytes": None,
                "options": {"store": "", "retries": None},
            },
            "state": {"type": "PAUSED"},
        },
    )
    assert answer.status_code == 201, answer.text
    served.api.delete(f"/flow_runs/{answer.json()['id']}").raise_for_status()


def test_the_weekly_schedule_is_planned_and_nothing_else_is(served: Any) -> None:
    schedules = {
        name: served.deployment(name)["schedules"] for name in ("pipeline", "requantize", "seed-validation")
    }
    assert [len(found) for found in schedules.values()] == [0, 0, 1]
    assert schedules["seed-validation"][0]["schedule"]["timezone"] == "Europe/Berlin"
    deadline = time.monotonic() + 90
    planned: list[Any] = []
    while not planned and time.monotonic() < deadline:
        body = {
            "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
            "deployments": {"name": {"any_": ["seed-validation"]}},
        }
        planned = served.api.post("/flow_runs/filter", json=body).json()
        time.sleep(0.5)
    assert planned, "the scheduler planned no run"


def test_runs_made_by_deployment_show_what_they_did(served: Any, two_runs: Any) -> None:
    first, _ = two_runs
    assert first["state_name"] == "Completed"
    expected = dict.fromkeys(STAGES, "Completed") | {
        "tokenize_corpus": "Cached"
    }  # the longer run had tokenized already
    assert {stage: task["state_name"] for stage, task in served.tasks(first["id"]).items()} == expected
    artifacts = served.artifacts(first["id"])
    assert {
        "result",
        "report",
        "byte-budget",
        "quantization",
        "bpb-decomposition",
        "loss-curve",
        "techniques",
    } <= set(artifacts)
    assert "100" in str(artifacts["progress-train"]["data"])
    [link] = re.findall(r"\((http://127[^)]+/report\.html)\)", artifacts["report"]["data"])
    assert first["name"] in httpx.get(link).raise_for_status().text


def test_log_lines_of_training_arrive_within_two_seconds_and_are_few(served: Any, two_runs: Any) -> None:
    query = "SELECT (julianday(created) - julianday(timestamp)) * 86400 FROM log WHERE message LIKE 'step %'"
    with closing(sqlite3.connect(f"{(served.home / 'prefect.db').as_uri()}?mode=ro", uri=True)) as database:
        delays = sorted(delay for (delay,) in database.execute(query))
    assert statistics.median(delays) < 2
    lines = [line for line in served.logs(two_runs[0]["id"]) if line["message"].startswith("step ")]
    assert 1 <= len(lines) <= 20
    assert any("step 40/40" in line["message"] for line in lines)


def test_one_training_at_a_time_and_the_other_run_says_what_it_waits_for(served: Any, two_runs: Any) -> None:
    assert [run["state_name"] for run in two_runs] == ["Completed", "Completed"]
    spans = sorted(
        (task["start_time"], task["end_time"])
        for task in (served.tasks(run["id"])["train"] for run in two_runs)
    )
    assert spans[0][1] <= spans[1][0]
    names = {run["name"] for run in two_runs}
    waits = [
        line["message"]
        for run in two_runs
        for line in served.logs(run["id"])
        if line["message"].startswith("train: waits for ")
    ]
    assert len(waits) == 1
    assert "tag:train" in waits[0]
    assert any(name in waits[0] for name in names)


def test_requantize_compares_bits_and_never_trains(served: Any, two_runs: Any) -> None:
    first = two_runs[0]
    run_id = served.start_run("requantize", run=first["name"], bits=["int4", "int5"])
    seen: list[str] = []
    run = served.wait(run_id, watch=lambda: seen.extend(served.processes("stages.training.worker")))
    assert run["state_name"] == "Completed", run["state"]["message"]
    assert run["name"] == f"{first['name']}-requantized"
    assert seen == []
    variants = served.subflows(run_id)
    assert len(variants) == 2
    for variant in variants:
        tasks = served.tasks(variant["id"])
        assert set(tasks) == {"quantize", "package", "check_size", "evaluate", "audit", "publish"}
        assert {task["state_name"] for task in tasks.values()} == {"Completed"}
    artifacts = served.artifacts(run_id)
    table = artifacts["comparison"]["data"]
    assert [name in table for name in (first["name"], "int4", "int5")] == [True] * 3
    assert "data:image/svg+xml;base64," in artifacts["comparison-plot"]["data"]


def test_a_cancelled_sweep_ends_at_once_with_all_its_variants(served: Any, two_runs: Any) -> None:
    run_id = served.start_run(
        "requantize", run=two_runs[0]["name"], bits=["int2", "int3", "int7", "int8"], at_once=2
    )
    deadline = time.monotonic() + 90
    while not (scoring := served.processes("train_gpt.py")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert scoring
    began = time.monotonic()
    served.api.post(
        f"/flow_runs/{run_id}/set_state", json={"state": {"type": "CANCELLING", "name": "Cancelling"}}
    ).raise_for_status()
    assert served.wait(run_id, 60)["state_name"] == "Cancelled"
    while served.processes("train_gpt.py") and time.monotonic() - began < 60:
        time.sleep(0.1)
    assert time.monotonic() - began < 15
    assert "Completed" not in {variant["state_name"] for variant in served.subflows(run_id)}


def test_requantize_of_an_unknown_run_says_which_there_are(served: Any, two_runs: Any) -> None:
    run = served.wait(served.start_run("requantize", run="smoke-seed1338"))
    assert run["state_name"] == "Failed"
    assert "smoke-seed1337" in run["state"]["message"]


def test_each_firing_of_a_schedule_adds_one_seed(served: Any, two_runs: Any) -> None:
    deployment = served.deployment("seed-validation")["id"]
    soon = (datetime.now(UTC) + timedelta(seconds=5)).isoformat()
    parameters = {"preset": "smoke", "max_seeds": 4, "mark_nats": 9.0}
    schedule = {"schedule": {"interval": 30, "anchor_date": soon}, "active": True, "parameters": parameters}
    [made] = (
        served.api.post(f"/deployments/{deployment}/schedules", json=[schedule]).raise_for_status().json()
    )
    body = {
        "flow_runs": {
            "parent_task_run_id": {"is_null_": True},
            "state": {"type": {"any_": ["PENDING", "RUNNING", "COMPLETED", "FAILED"]}},
        },
        "deployments": {"id": {"any_": [deployment]}},
        "sort": "EXPECTED_START_TIME_ASC",
    }
    fired: list[Any] = []
    deadline = time.monotonic() + 120
    while len(fired) < 2 and time.monotonic() < deadline:
        fired = served.api.post("/flow_runs/filter", json=body).json()
        time.sleep(0.3)
    served.api.delete(f"/deployments/{deployment}/schedules/{made['id']}").raise_for_status()
    assert len(fired) == 2
    first = served.wait(fired[0]["id"], 200)
    assert first["state_name"] == "Completed", first["state"]["message"]
    assert "1 of at most 4 seeds are done" in served.artifacts(first["id"])["seed-validation"]["data"]
    second = served.wait(fired[1]["id"], 200)
    assert second["state_name"] == "Completed", second["state"]["message"]
    said = served.artifacts(second["id"])["seed-validation"]["data"]
    assert "2 of at most 4 seeds are done" in said
    assert "95 % interval" in said
    assert "test 1 of at most 3" in said
    ledger = find_ledger(served.store, "smoke")
    assert [(entry.seed, entry.status) for entry in ledger.entries] == [(1, "completed"), (2, "completed")]
    assert [len(served.subflows(run["id"])) for run in (first, second)] == [1, 1]
    assert ledger.entries[0].figures != ledger.entries[1].figures


def test_a_stop_in_the_middle_leaves_no_process_and_no_run_that_hangs(served: Any, two_runs: Any) -> None:
    run_id = served.start_run("pipeline", preset="smoke", seed=99, max_steps=100_000)
    deadline = time.monotonic() + 60
    while not served.processes("stages.training.worker") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert served.processes("stages.training.worker")
    served.process.send_signal(signal.SIGKILL)  # nothing can be said or settled now
    served.process.wait()
    deadline = time.monotonic() + 45
    while served.processes() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert served.processes() == []
    assert served.start() < 60
    run = served.run(run_id)
    assert run["state_name"] == "Crashed"
    assert "training resumes from its last checkpoint" in run["state"]["message"]
    assert served.tasks(run_id)["train"]["state_name"] == "Crashed"
    served.api.delete(f"/flow_runs/{run_id}").raise_for_status()  # else a late watch may start it once more
    again = served.wait(
        served.start_run("pipeline", preset="smoke"), 100
    )  # wholly cached, so no slot is needed
    assert {task["state_name"] for task in served.tasks(again["id"]).values()} == {"Cached"}
    assert served.stop() < 30
    assert served.processes() == []
    assert served.process.returncode == 0
    served.start()
