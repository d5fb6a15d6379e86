"""Counts in closed form against the real model and the real schedule."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from presets import PRESETS
from schemas.model_settings import ModelSettings
from schemas.scoring_settings import ScoringSettings
from schemas.train_settings import ScheduleSettings, SnapshotSettings
from stages.core.model import GPT
from stages.core.scoring import plan_windows
from stages.planning.counts import (
    count_parameters,
    long_context,
    long_context_operations,
    num_snapshots,
    operations_a_token,
    scored_tokens,
)

FORMS: list[dict[str, Any]] = [
    {"tied_head": False, "head_gate": True},
    {"loop_passes": 3, "skip_gates": True},
    {"parallel_residuals": "two_lanes", "parallel_first_layer": 8},
    {"smear_form": "by_input", "unet_skips": False},
    {"smear_gate": False, "value_embedding_scale_every_layer": True},
]


def _real(model: ModelSettings) -> int:
    with torch.device("meta"):
        return sum(param.numel() for param in GPT(model).parameters())


@pytest.mark.parametrize("preset", PRESETS)
def test_parameters_are_those_of_the_real_model(preset: str) -> None:
    model = PRESETS[preset]().train.model
    assert count_parameters(model).total == _real(model)


@pytest.mark.parametrize("form", FORMS)
def test_so_are_those_of_every_form_of_the_model(form: dict[str, Any]) -> None:
    model = replace(ModelSettings(vocab_size=64, model_dim=128, mlp_hidden=96), **form)
    assert count_parameters(model).total == _real(model)


def test_a_loop_takes_operations_and_no_parameters() -> None:
    plain = ModelSettings()
    looped = replace(plain, loop_passes=3)
    assert operations_a_token(looped, 2048) == pytest.approx(
        17 / 11 * operations_a_token(plain, 2048), rel=0.01
    )
    assert operations_a_token(looped, 2048, looped_share=0.0) == operations_a_token(plain, 2048)


@pytest.mark.parametrize(("num_tokens", "stride"), [(1000, 64), (1000, 256), (257, 64), (100, 64)])
def test_windows_are_those_that_scoring_plans(num_tokens: int, stride: int) -> None:
    scoring = ScoringSettings(sequence_length=256, stride=64)
    windows = plan_windows(num_tokens - 1, 256, stride)
    assert scored_tokens(num_tokens, scoring, stride) == len(windows) * min(256, num_tokens)


def test_an_attention_window_takes_about_one_pass_with_twice_the_keys() -> None:
    scoring = ScoringSettings(2048, 0, batch_tokens=65_536, attention_window=2048)
    windows = long_context(scoring)
    assert windows is not None
    planned = plan_windows(999_999, windows.sequence_length, windows.stride)
    assert scored_tokens(1_000_000, windows, windows.stride) == len(planned) * 32_768
    assert sum(window.stop - window.start for window in planned) == 999_999 + (len(planned) - 1) * 2048
    model = ModelSettings()
    once = 1_000_000 * operations_a_token(model, 4096)
    assert long_context_operations(model, 1_000_000, scoring) == pytest.approx(16 / 15 * once, rel=0.02)
    assert long_context(ScoringSettings(2048, 0)) is None
    assert long_context_operations(model, 1_000_000, ScoringSettings(2048, 0)) == 0
    sliding = ScoringSettings(2048, 64)
    assert long_context(sliding) == sliding
    assert long_context_operations(model, 1_000_000, sliding) > 20 * once


def test_snapshots_are_counted_by_the_schedule_of_training() -> None:
    schedule = ScheduleSettings(max_steps=440, warmdown_fraction=0.8)
    # The readme's run of these settings merged 9.
    assert num_snapshots(schedule, SnapshotSettings(start_lr_scale=0.1, every_steps=4), 440) == 9
    assert num_snapshots(schedule, SnapshotSettings(start_lr_scale=0.0), 440) == 0
