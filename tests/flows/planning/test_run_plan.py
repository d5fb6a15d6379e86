"""The plan of a run: against the store of a finished one, and as the command tells it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flows.cli.main import app
from flows.inputs.specs import plan_run
from flows.planning.chain import DAMAGED, NEVER_RUN, next_stages
from flows.planning.run_plan import Asked, plan_of_run
from schemas.plan import PlannedStage, RunPlan
from schemas.runtime import RunOptions
from stages.store.store import Store


def fairway(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _plan(store: Path, *overrides: str, gpu_hour: float | None = None) -> RunPlan:
    asked = Asked(gpu_hour=gpu_hour)
    return plan_of_run(plan_run("smoke", overrides), Store(store), RunOptions(store=str(store)), asked)


def _stages(plan: RunPlan) -> dict[str, PlannedStage]:
    return {stage.stage: stage for stage in plan.stages}


def test_a_run_that_is_stored_takes_no_time(smoke_run: Any, smoke_store: Path) -> None:
    plan = _plan(smoke_store)
    assert plan.seconds == 0
    assert all(stage.cached and not stage.reasons for stage in plan.stages)
    assert {stage.stage: stage.key for stage in plan.stages} == {
        stage.stage: stage.key for stage in smoke_run.report.stages
    }


def test_another_quantizer_names_its_setting_and_trains_nothing(smoke_run: Any, smoke_store: Path) -> None:
    stages = _stages(_plan(smoke_store, "quantize.zstd_level=3"))
    assert [name for name in stages if stages[name].cached] == ["tokenize_corpus", "train", "merge"]
    assert stages["quantize"].reasons == ("settings (zstd_level)",)
    assert stages["package"].reasons == ("quantize runs, and its result is not known yet",)


def test_twice_the_steps_take_the_earlier_runs_seconds_and_more(smoke_run: Any, smoke_store: Path) -> None:
    steps = 2 * smoke_run.report.trained.steps
    plan = _plan(smoke_store, f"train.schedule.max_steps={steps}")
    train, trained = _stages(plan)["train"], smoke_run.report.trained.timings.training_seconds
    took = next(stage.computed_seconds for stage in smoke_run.report.stages if stage.stage == "train")
    assert train.reasons == ("settings (schedule.max_steps)",)
    assert train.seconds == pytest.approx(took + trained, rel=0.01)
    assert (train.source, plan.unknown, plan.steps) == ("earlier run", (), steps)
    assert plan.seconds > train.seconds


def test_the_price_is_that_of_the_gpus_for_the_whole_run(smoke_run: Any, smoke_store: Path) -> None:
    assert _plan(smoke_store, "audit.gap_tokens=0", gpu_hour=2.69).cost == 0  # no stage uses a GPU
    assert _plan(smoke_store).cost is None


def test_a_damaged_result_is_named(smoke_run: Any, smoke_store: Path, tmp_path: Path) -> None:
    shutil.copytree(smoke_store, tmp_path / "store")
    key = next(stage.key for stage in smoke_run.report.stages if stage.stage == "quantize")
    blob = next((tmp_path / "store").glob(f"stages/quantize/{key[:32]}/model.fwz"))
    blob.write_bytes(b"damaged")
    assert _stages(_plan(tmp_path / "store"))["quantize"].reasons == (DAMAGED,)


def test_an_empty_store_knows_neither_results_nor_seconds(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    stages = _stages(plan)
    assert stages["tokenize_corpus"].reasons == (NEVER_RUN,)
    assert stages["train"].key is None
    assert plan.unknown == ("tokenize_corpus", "train", "merge", "quantize", "evaluate", "audit")
    assert not list((tmp_path / "stages").iterdir())


def test_the_command_needs_neither_torch_nor_prefect(tmp_path: Path) -> None:
    code = (
        "import sys; from flows.cli.main import app; app(standalone_mode=False); "
        "print('torch' in sys.modules, 'prefect' in sys.modules, file=sys.stderr)"
    )
    text = ["--set", "tokenize.corpus.kind=sotu"]
    arguments = ["plan", "--preset", "record", *text, "--gpu-hour", "2.69", "--json"]
    command = [sys.executable, "-c", code, *arguments, "--store", str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stderr.splitlines()[-1] == "False False"
    told = json.loads(answer.stdout)
    assert told["gpus"] == 8
    assert 14 < told["stages"][1]["gpu_bytes"] / 2**30 < 18


def test_people_see_a_table_with_a_sum(smoke_run: Any, smoke_store: Path) -> None:
    shown = fairway("plan", "--preset", "smoke", "--store", smoke_store, "--set", "audit.gap_tokens=0").stdout
    assert "settings (audit.gap_tokens)" in shown
    assert "in all" in shown
    assert "34,887 parameters, 40 steps, 40,960 tokens" in shown


def test_bad_input_is_refused_by_its_name(tmp_path: Path) -> None:
    answer = fairway("plan", "--preset", "smoke", "--store", tmp_path, "--set", "train.seeed=1")
    assert answer.exit_code == 2
    assert "train.seed" in answer.stderr


def test_the_chain_lists_every_stage_in_its_order(smoke_run: Any, smoke_store: Path) -> None:
    chain, manifest = next_stages(plan_run("smoke", []), Store(smoke_store))
    assert list(chain) == [stage.stage for stage in smoke_run.report.stages]
    assert len(manifest.files) == 6
