from typing import Literal

import pytest

from presets import load_preset
from schemas.base import fingerprint
from schemas.errors import SpecError
from schemas.overrides import apply_overrides
from schemas.quantize import quantize_compute
from schemas.quantizer_settings import CalibrationSettings, Ecsq
from schemas.recipe import Recipe
from schemas.techniques import find_technique


def test_figures_of_two_contexts_are_not_compared() -> None:
    smoke = load_preset("smoke")
    with pytest.raises(SpecError, match=r"scoring.sequence_length = 64 and evaluate.scoring.sequence_length"):
        apply_overrides(smoke, ["evaluate.scoring.sequence_length=128"])
    both = apply_overrides(
        smoke, ["evaluate.scoring.sequence_length=128", "merge.scoring.sequence_length=128"]
    )
    assert both.recipe().scoring.sequence_length == 128


def test_figures_of_two_kinds_of_windows_are_not_compared() -> None:
    smoke = load_preset("smoke")
    with pytest.raises(SpecError, match=r"merge.scoring.windows = stream and evaluate.scoring.windows = doc"):
        apply_overrides(smoke, ["evaluate.scoring.windows=documents"])
    both = apply_overrides(smoke, ["evaluate.scoring.windows=documents", "merge.scoring.windows=documents"])
    assert both.recipe().scoring.windows == "documents"


def test_test_time_training_that_is_off_leaves_a_run_its_name() -> None:
    smoke = load_preset("smoke")
    assert type(smoke.recipe()) is Recipe
    assert "test_time_training" not in smoke.evaluate.identity()
    unused = apply_overrides(smoke, ["evaluate.test_time_training.rank=8"])
    assert fingerprint(unused) == fingerprint(smoke)
    on = apply_overrides(smoke, ["evaluate.test_time_training.on=true"])
    assert fingerprint(on) != fingerprint(smoke)
    assert find_technique("test-time-training").without(on) == smoke


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("chunk_tokens=65", r"chunk_tokens = 65: must be at most evaluate\.scoring\.sequence_length = 64"),
        ('targets=["k", "k"]', r"targets = \('k', 'k'\): name at least one target, and each once"),
        ('targets=["up"]', r"targets"),
        ("rank=0", r"rank = 0: must be at least 1"),
    ],
)
def test_settings_of_test_time_training_that_cannot_be_are_named(setting: str, message: str) -> None:
    overrides = ["evaluate.test_time_training.on=true", f"evaluate.test_time_training.{setting}"]
    with pytest.raises(SpecError, match=message):
        apply_overrides(load_preset("smoke"), overrides)


def test_a_mean_that_training_does_not_keep_is_refused_before_it() -> None:
    with pytest.raises(SpecError, match=r"train\.snapshots\.ema_horizon is empty"):
        apply_overrides(load_preset("smoke"), ["merge.averaging.method=ema_of_steps"])


def test_a_quantizer_on_a_gpu_that_the_training_does_without_is_refused_before_the_run() -> None:
    on_the_cpu = ["train.compute.device=cpu", "train.compute.fused_kernels=false"]
    with pytest.raises(SpecError, match=r"set quantize\.calibration\.device=cpu"):
        apply_overrides(load_preset("winner-1gpu"), on_the_cpu)
    spec = apply_overrides(load_preset("winner-1gpu"), [*on_the_cpu, "quantize.calibration.device=cpu"])
    assert quantize_compute(spec.quantize).device == "cpu"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_quantizer_computes_where_it_reads_its_text(device: Literal["cpu", "cuda"]) -> None:
    compute = quantize_compute(Ecsq(calibration=CalibrationSettings(device=device, threads=3)))
    assert (compute.device, compute.threads_per_process, compute.precision) == (device, 3, "float32")


def test_an_attention_window_beside_sliding_windows_is_refused() -> None:
    """One of the two would be left out in silence."""
    smoke = load_preset("smoke")
    with pytest.raises(
        SpecError, match=r"attention_window = 64: .*set evaluate\.scoring\.stride=0, which is 32"
    ):
        apply_overrides(smoke, ["evaluate.scoring.attention_window=64"])
    both = apply_overrides(smoke, ["evaluate.scoring.attention_window=64", "evaluate.scoring.stride=0"])
    assert both.evaluate.scoring.overlapping == (1_024, 960)
    assert smoke.evaluate.scoring.overlapping == (64, 32)
