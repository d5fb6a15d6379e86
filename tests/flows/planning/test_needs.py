"""Warnings where something will not fit, with the setting that makes it fit."""

from pathlib import Path

import pytest

from flows.inputs.specs import Plan, plan_run
from flows.planning.needs import USABLE, Needs, warnings_of
from schemas.overrides import apply_overrides
from stages.planning.memory import micro_batch, training_memory
from stages.planning.work import TextSize
from stages.store.store import Store

GIB = 2**30
SIZE = TextSize(400_000_000, 200_000_000, 62_000_000)


def _warnings(plan: Plan, folder: Path, gpu_bytes: int | None) -> list[str]:
    needs = Needs(plan, SIZE, plan.spec.train.schedule.max_steps, 2, None).by_stage()
    return list(warnings_of(plan, needs, gpu_bytes, Store(folder)))


def test_a_smaller_gpu_gets_the_micro_batch_that_fits(tmp_path: Path) -> None:
    plan = plan_run("record", [])
    [warning] = [line for line in _warnings(plan, tmp_path, 12 * GIB) if line.startswith("train")]
    setting = next(word for word in warning.split() if word.startswith("train.data.micro_batch_sequences="))
    smaller = apply_overrides(plan.spec, [setting]).train
    assert training_memory(smaller).peak(micro_batch(smaller)) <= USABLE * 12 * GIB
    smaller_run = _warnings(plan_run("record", [setting]), tmp_path, 12 * GIB)
    assert not [line for line in smaller_run if line.startswith("train")]


def test_a_gpu_for_which_one_sequence_is_too_much_gets_another_remedy(tmp_path: Path) -> None:
    [warning] = [line for line in _warnings(plan_run("record", []), tmp_path, GIB // 2) if "train:" in line]
    assert "Not even one sequence fits" in warning


def test_scoring_that_does_not_fit_gets_fewer_tokens_at_once(tmp_path: Path) -> None:
    warnings = _warnings(plan_run("winner", []), tmp_path, 10 * GIB)
    assert any("evaluate.scoring.batch_tokens=" in warning for warning in warnings)


def test_a_run_that_fits_is_not_warned_of(tmp_path: Path) -> None:
    assert not _warnings(plan_run("smoke", []), tmp_path, None)


def test_main_memory_and_disk_are_compared_with_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.planning.needs.free_main_memory", lambda: 700 * 2**20)
    monkeypatch.setattr("flows.planning.needs.free_disk", lambda folder: 1000)
    warnings = _warnings(plan_run("demo", []), tmp_path, None)
    assert any(line.startswith("train") and "micro_batch_sequences=" in line for line in warnings)
    assert any(line.startswith("disk") and "fairway gc" in line for line in warnings)
