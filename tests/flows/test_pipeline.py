"""The flow end to end on the preset `smoke`: real stages, a real (temporary) Prefect server."""

import base64
import re
import time
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    LogFilter,
    LogFilterFlowRunId,
)

from schemas.errors import SpecError, StageError
from schemas.pipeline import PipelineReport
from schemas.stages import STAGES
from stages.scoring.isolated import check_isolated
from tests.faults.chain import Chain

ALL = list(STAGES)
FROM_QUANTIZE = ["quantize", "package", "check_size", "evaluate", "audit", "publish"]


@pytest.fixture(scope="session")
def first_logs(smoke_run: Any) -> list[str]:
    """Lines of the first run's log on the server; they arrive within seconds."""
    run_id = smoke_run.state.state_details.flow_run_id
    deadline, lines = time.monotonic() + 15, []
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline and not any("step 40/40" in line for line in lines):
            lines = [
                item.message
                for item in client.read_logs(
                    LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id])), limit=200
                )
            ]
            time.sleep(0.3)
    return lines


def test_a_run_makes_every_stage_and_leaves_its_report(smoke_run: Any, smoke_store: Path) -> None:
    assert smoke_run.state.is_completed()
    assert smoke_run.computed == ALL
    report = smoke_run.report
    assert isinstance(report, PipelineReport)
    assert report.size.fits
    assert [stage.stage for stage in report.stages] == ALL
    assert (smoke_store / report.published.html.path).is_file()
    assert (smoke_store / report.package.folder).is_dir()


def test_a_run_is_named_by_preset_seed_and_fingerprint(smoke_run: Any) -> None:
    assert re.fullmatch(r"smoke-seed1337-[0-9a-f]{8}", smoke_run.report.name)
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(smoke_run.state.state_details.flow_run_id).name == smoke_run.report.name


def test_lines_of_the_stages_reach_the_runs_log(first_logs: list[str]) -> None:
    assert any("step 40/40" in line for line in first_logs), first_logs
    assert any(line.startswith("quantized ") for line in first_logs)


def test_a_run_shows_tables_and_the_loss_curve(smoke_run: Any) -> None:
    run_id = smoke_run.state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        )
    by_key = {artifact.key: str(artifact.data) for artifact in artifacts}
    progress = {key for key in by_key if key.startswith("progress-")}
    assert progress >= {"progress-tokenize-corpus", "progress-train", "progress-evaluate"}
    assert set(by_key) - progress == {
        "result",
        "report",
        "byte-budget",
        "quantization",
        "quantization-gap",
        "bpb-decomposition",
        "loss-curve",
        "techniques",
        "training",
    }
    assert Path(smoke_run.report.published.html.path).name in by_key["report"]
    assert f"{smoke_run.report.val_bpb_quantized:.5f}" in by_key["result"]
    picture = re.search(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", by_key["loss-curve"])
    assert picture is not None
    assert base64.b64decode(picture[1]).startswith(b"<svg")


def test_a_second_run_is_wholly_cached_and_gives_the_same(
    run_pipeline: Any, smoke_run: Any, smoke_store: Path
) -> None:
    again = run_pipeline(smoke_store)
    assert again.state.is_completed()
    assert {state.name for state in again.task_states.values()} == {"Cached"}
    assert again.report.evaluation == smoke_run.report.evaluation
    assert again.report.package.blob == smoke_run.report.package.blob
    assert all(stage.cached for stage in again.report.stages)


def test_other_quantization_reruns_it_and_what_follows(plain_clips: Any, smoke_run: Any) -> None:
    assert plain_clips.computed == FROM_QUANTIZE
    assert plain_clips.report.packed.blob != smoke_run.report.packed.blob
    assert plain_clips.report.merged == smoke_run.report.merged


def test_another_method_trains_again_only_where_late_qat_would_know_another_grid(
    smoke_run: Any, smoke_store: Path
) -> None:
    """By the keys alone: nothing is trained for it."""
    other, no_qat = "quantize.method=round_to_nearest", "train.qat.start_lr_scale=0"
    chains = {asked: Chain(smoke_store, list(asked)) for asked in ((), (other,), (no_qat,), (no_qat, other))}
    for chain in chains.values():
        assert chain.run("tokenize_corpus").cached
    train = {asked: chain.key("train") for asked, chain in chains.items()}
    assert chains[()].is_made("train")
    assert chains[(other,)].spec.train.qat.grid == "round_to_nearest"
    assert not chains[(other,)].is_made("train")
    assert train[(no_qat,)] == train[(no_qat, other)] != train[()]
    for asked in ((no_qat,), (no_qat, other)):
        chains[asked].results["merged"] = smoke_run.report.merged
    assert chains[(no_qat,)].key("quantize") != chains[(no_qat, other)].key("quantize")


def test_a_damaged_blob_is_made_again_and_nothing_else_is(smoke_run: Any, smoke_store: Path) -> None:
    blob = smoke_store / smoke_run.report.packed.blob.path
    content = blob.read_bytes()
    flipped = content[:40] + bytes([content[40] ^ 1]) + content[41:]
    chain = Chain(smoke_store, [])
    chain.run_all()
    for harmed in (None, flipped, content[:-1], b""):
        assert chain.is_made("quantize")
        blob.unlink()
        if harmed is not None:
            blob.write_bytes(harmed)
        assert not chain.is_made("quantize")
        if harmed is flipped:
            again = [stage for stage in STAGES if not chain.run(stage).cached]
            assert again[0] == "quantize"
            assert set(again) <= {"quantize", "publish"}  # the report says when each result was made
            assert blob.read_bytes() == content
        blob.write_bytes(content)


def test_over_the_limit_the_run_fails_after_its_report_and_says_by_how_much(
    over_limit: Any, smoke_run: Any, smoke_store: Path
) -> None:
    over = over_limit
    assert over.state.is_failed()
    assert over.computed == ["check_size", "audit", "publish"]
    assert over.report.size.margin_bytes == 100 - smoke_run.report.size.total_bytes
    message = str(over.state.result(raise_on_failure=False))
    assert f"{-over.report.size.margin_bytes:,} bytes" in message
    assert all(part.name in message for part in over.report.size.largest)
    assert len(over.report.size.largest) == 3
    assert "OVER" in (smoke_store / over.report.published.html.path).read_text()


def test_bad_input_is_refused_before_any_stage(run_pipeline: Any, tmp_path: Path) -> None:
    refused = run_pipeline(tmp_path, "quantize.methd=x")
    assert refused.state.is_failed()
    assert refused.task_states == {}
    with pytest.raises(SpecError, match=r"quantize\.method"):
        refused.state.result()


def test_a_transient_error_is_retried_and_a_permanent_one_is_not(
    run_pipeline: Any, smoke_run: Any, smoke_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.tasks import stage_task as tasks

    real, tries = tasks.run_stage, []

    def flaky(store: Any, stage: str, *rest: Any) -> Any:
        if stage == "quantize":
            tries.append(stage)
            if len(tries) == 1:
                raise OSError("the disk was away")
        return real(store, stage, *rest)

    monkeypatch.setattr(tasks, "BACKOFF_SECONDS", 0.05)
    monkeypatch.setattr(tasks, "run_stage", flaky)
    assert run_pipeline(smoke_store).state.is_completed()
    assert len(tries) == 2

    def hopeless(store: Any, stage: str, *rest: Any) -> Any:
        tries.append(stage)
        raise StageError("the weights are not finite")

    tries.clear()
    monkeypatch.setattr(tasks, "run_stage", hopeless)
    failed = run_pipeline(smoke_store, retries=3)
    assert tries == ["tokenize_corpus"]
    assert failed.state.is_failed()
    assert "the weights are not finite" in failed.task_states["tokenize_corpus"].message
    assert failed.report is None


def test_training_carries_the_tag_that_limits_it(smoke_run: Any) -> None:
    from flows.tasks.stage_task import stage_task
    from schemas.runtime import RunOptions

    assert stage_task("train", RunOptions()).tags == {"train"}
    assert stage_task("quantize", RunOptions()).tags == set()


def test_a_package_that_the_script_would_miss_ends_the_run_before_its_first_stage(
    run_pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.pipeline.check_isolated", lambda: check_isolated(["torch", "not_there"]))
    refused = run_pipeline(tmp_path)
    assert refused.state.is_failed()
    with pytest.raises(SpecError, match=r"does not find not_there: install them into this Python's own env"):
        refused.state.result()
    assert not list((tmp_path / "stages").glob("*/*"))


@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_a_missing_gpu_ends_the_run_before_its_first_stage(
    run_pipeline: Any, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    refused = run_pipeline(tmp_path, f"{stage}.compute.device=cuda")
    with pytest.raises(SpecError, match=rf"^{stage}\.compute\.device = cuda.* each process needs a GPU"):
        refused.state.result()
    assert not list((tmp_path / "stages").glob("*/*"))
