"""Held-out scores of whole runs: the live artifact, a rule that ends a run, and what is left of it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.inputs.held_out import plan_held_out
from flows.results.chart import chart
from flows.results.compared import compare_runs, find_runs
from flows.results.compared_page import page, read_curves
from flows.tasks import training_artifact
from flows.tasks.training_artifact import TrainingArtifact
from schemas.errors import SpecError
from schemas.runtime import RunOptions
from schemas.stopped import StoppedRun
from stages.store.housekeeping import find_damage, find_unneeded
from stages.store.runs import list_reports
from stages.store.stopped import list_stopped
from stages.store.store import Store
from stages.training.metrics import HELD_OUT_COLUMNS, curve_of, read_metrics, write_table

ROW = {"loss": 3.0, "lr_scale": 1.0, "qat_on": False, "snapshot": False}


def _rows(count: int) -> list[dict[str, Any]]:
    scores = [(3.1, 4.0) if n % 4 == 0 else (None, None) for n in range(1, count + 1)]
    return [
        {**ROW, "step": n, "seconds": 0.1 * n, "val_nats": nats, "val_bpb": bpb}
        for n, (nats, bpb) in enumerate(scores, start=1)
    ]


@pytest.fixture(scope="module")
def stopped(api: str, smoke_run: Any, smoke_store: Path) -> Iterator[tuple[Any, StoppedRun]]:
    """The smoke run with another seed, which a rule ends at a fifth; its Prefect state and its record.

    Other tests share the store, so both of its folders go again.
    """
    from flows.pipeline import pipeline

    options = RunOptions(store=str(smoke_store), retries=1, stop_if="val_bpb > 0.1 at 20%")
    state = pipeline("smoke", overrides=["train.seed=77"], options=options, return_state=True)
    [record] = list_stopped(smoke_store)
    yield state, record
    shutil.rmtree(smoke_store / "runs" / record.run_id)
    shutil.rmtree(smoke_store / "work" / "train")


def test_a_rule_fails_the_run_with_the_reason(stopped: tuple[Any, StoppedRun]) -> None:
    state, record = stopped
    reason = "training was stopped at step 8 (20%): val_bpb is "
    assert state.name == "Failed"
    assert reason in state.message
    assert "'val_bpb > 0.1 at 20%'" in state.message
    assert record.reason.startswith(reason)
    assert record.run_id == str(state.state_details.flow_run_id)


def test_compare_draws_a_stopped_run_and_says_why_it_ended(
    stopped: tuple[Any, StoppedRun], smoke_run: Any, smoke_store: Path
) -> None:
    store, finished = Store(smoke_store), list_reports(smoke_store)
    runs = find_runs(store, finished, [smoke_run.report.run_id, stopped[1].run_id])
    found = compare_runs(store, runs, finished)
    assert [item.name for item in found.settings if item.differs] == ["train.seed"]
    assert {stage.stage: stage.reasons[0] for stage in found.stages}["train"] == ("did not run",)
    assert found.conclusions == (f"B: {stopped[1].reason}.",)
    curves = read_curves(store, found, runs)
    assert [len(metrics["step"]) for _, metrics in curves] == [40, 8]
    assert "<svg" in page(found, curves)


def test_housekeeping_keeps_and_checks_a_stopped_run(
    stopped: tuple[Any, StoppedRun], smoke_store: Path
) -> None:
    store = Store(smoke_store)
    folder = smoke_store / "runs" / stopped[1].run_id
    assert folder not in [item.path for item in find_unneeded(store, older_than_hours=0)]
    (folder / "metrics.parquet").write_bytes(b"damaged")
    assert any("metrics.parquet" in problem for problem in find_damage(store))


def test_the_artifact_of_a_run_has_its_curve_and_the_scores_of_its_models(smoke_run: Any) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, FlowRunFilter

    ours = FlowRunFilter(id={"any_": [smoke_run.report.run_id]})
    named = ArtifactFilter(key=ArtifactFilterKey(any_=[training_artifact.KEY]))
    with get_client(sync_client=True) as client:
        [artifact] = client.read_artifacts(flow_run_filter=ours, artifact_filter=named)
    assert "Step 40," in artifact.data
    assert "| merged model |" in artifact.data
    assert "| quantized model |" in artifact.data


def test_the_artifact_is_redrawn_in_place_and_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    sent: list[str] = []
    clock = [1000.0]
    monkeypatch.setattr(training_artifact.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(TrainingArtifact, "_send", lambda self, text: sent.append(text))
    lines = tmp_path / "metrics.jsonl"
    look = TrainingArtifact("a run").follow(lines)
    look()
    assert sent == []  # no step yet
    for seconds, count in ((0.0, 4), (14.0, 8), (1.0, 8), (10.0, 12), (5.0, 12)):
        clock[0] += seconds
        lines.write_text("".join(json.dumps(row) + "\n" for row in _rows(count)))
        look()
    assert ["Step 4," in sent[0], "Step 8," in sent[1], "Step 12," in sent[2]] == [True] * 3
    assert len(sent) == 3
    assert "step 8 | 3.1000" in sent[1]


def test_a_run_without_held_out_scores_cannot_be_one_to_stay_near(
    smoke_run: Any, smoke_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, report = Store(smoke_store), smoke_run.report
    options = RunOptions(store=str(smoke_store), stop_behind=f"{report.run_id}:0.02")
    with pytest.raises(SpecError, match=r"stop_behind = .*trained without held-out scores"):
        plan_held_out(options, report.spec, store)
    table = tmp_path / "metrics.parquet"
    monkeypatch.setattr(store, "fetch", lambda ref: table)
    scoring = report.spec.merge.scoring
    text = {"tokens": 65_536, "sequence_length": scoring.sequence_length, "windows": scoring.windows}
    write_table(table, _rows(40), {**text, "tokens": 1})
    with pytest.raises(SpecError, match=r"scored with tokens = 1, .*this run is with tokens = 65536"):
        plan_held_out(options, report.spec, store)
    write_table(table, _rows(40), text)
    plan = plan_held_out(options, report.spec, store)
    assert plan is not None
    assert plan.asked.every == 0.05
    assert plan.asked.behind is not None
    assert plan.asked.behind.curve == curve_of(
        read_metrics(table, ("step", "seconds", *HELD_OUT_COLUMNS)), report.spec.train.schedule
    )


def test_metrics_of_an_earlier_version_have_no_scores(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([{"step": 1, "loss": 3.0}]), tmp_path / "old.parquet")
    assert np.isnan(read_metrics(tmp_path / "old.parquet", ("step", "val_nats"))["val_nats"]).all()


def test_a_chart_falls_as_its_curve_does() -> None:
    x = np.array([1.0, 10.0])
    lines = chart([(x, np.array([4.0, 2.0]))], width=40, height=5, x_max=10)
    texts = ["".join(text for text, _ in line)[9:] for line in lines]
    assert {len(text) for text in texts} == {31}
    places = [next(at for at, sign in enumerate(text) if sign != " ") for text in texts]
    assert places == sorted(places)
    with pytest.raises(ValueError, match="no point"):
        chart([], 40, 5, 1)
