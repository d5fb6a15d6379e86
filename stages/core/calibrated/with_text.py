"""A whole model by gptq or ecsq: statistics of training text, steps that meet a limit, and how far the
predictions move.

The quantize stage and the program that ships run this same code, so that both make the same blob.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from schemas.quantizer_settings import CalibrationSettings, QuantizerSettings
from schemas.settings import ModelSettings
from stages.core.blob.packing import pack
from stages.core.calibrated.calibration import collect_statistics
from stages.core.calibrated.coded_model import (
    COARSEST_LOSS_NATS,
    MAX_FIT_TRIES,
    CodedPlan,
    divergence,
    fit_multiplier,
    plan_coded,
    predictions,
    with_measured_shares,
)
from stages.core.calibrated.whole_model import quantize_state
from stages.core.distributed import compute_with
from stages.core.loader import TokenStream
from stages.core.model import GPT
from stages.core.quantizers.quantized import QuantizedModel

MEASURED_SEQUENCES = 32
_SHARES_PROGRESS = 100


@dataclass(frozen=True)
class CalibratedModel:
    """A quantized model and what was measured on the way.

    `divergence_nats` a token of all tensors together, on training text. Of ecsq alone: the multiplier of all
    steps, the divergence of each matrix quantized by itself where shares were measured, and where a limit was
    fitted the tries as (multiplier, bytes of the package).
    """

    model: QuantizedModel
    divergence_nats: float
    multiplier: float | None = None
    divergences: tuple[tuple[str, float], ...] = ()
    tries: tuple[tuple[float, int], ...] = ()


def quantize_with_text(
    state: dict[str, Tensor],
    model_settings: ModelSettings,
    stream: TokenStream,
    settings: QuantizerSettings,
    metadata: dict[str, Any],
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[float, float], None] = lambda done, total: None,
) -> CalibratedModel:
    """`state` (float32, on the CPU) by settings.method with the text of `stream`; `metadata` is what the
    blob will hold.

    Sets the threads and the deterministic mode that the result depends on. Raises LimitTooSmallError and
    FormatRuleError as the methods do, and ValueError for weights that no format holds or where the stream is
    too short.
    """
    calibration = settings.calibration
    compute_with(calibration.threads, deterministic=True)
    model = GPT(model_settings)
    model.load_state_dict(state)
    batches = calibration_batches(stream, calibration)
    measures_shares = settings.method == "ecsq" and settings.ecsq.measured_shares
    shares_progress = _SHARES_PROGRESS if measures_shares else 0
    total = (
        len(batches) + shares_progress + (MAX_FIT_TRIES if settings.fit.limit_bytes is not None else 0) + 1
    )
    statistics = collect_statistics(model, batches, calibration.seed, lambda done: progress(done, total))
    say(f"calibrated on {calibration.num_sequences * calibration.sequence_length:,} tokens of training text")
    checks = batches[: max(1, MEASURED_SEQUENCES // calibration.batch_sequences)]
    multiplier, divergences, tries = None, dict[str, float](), list[tuple[float, int]]()
    if settings.method == "gptq":
        quantized = quantize_state(state, settings, statistics)
    else:
        plan = plan_coded(state, settings, statistics)
        multiplier = plan.multiplier_for(settings.ecsq.loss_nats)
        if measures_shares:
            share = shares_progress / len(plan.matrices)
            plan, divergences = with_measured_shares(
                plan, model, checks, multiplier, lambda done: progress(len(batches) + done * share, total)
            )
        if settings.fit.limit_bytes is not None:
            before_fit = len(batches) + shares_progress
            multiplier = _fit_plan(
                plan, settings, metadata, tries, say, lambda done: progress(before_fit + done, total)
            )
        quantized = plan.quantized(multiplier)
    expected = predictions(model, checks)
    model.load_state_dict({tensor.name: tensor.dequantized() for tensor in quantized.tensors})
    moved = divergence(expected, predictions(model, checks))
    say(f"on training text the predictions move by {moved:.5f} nats a token")
    progress(total, total)
    return CalibratedModel(quantized, moved, multiplier, tuple(divergences.items()), tuple(tries))


def calibration_batches(stream: TokenStream, settings: CalibrationSettings) -> list[Tensor]:
    """Token ids (B, T + 1) int64: sequences drawn from the whole stream without overlap, in the order of
    the draw.

    Raises ValueError where the stream is too short.
    """
    settings.check_text(len(stream))
    there = settings.sequences_in(len(stream))
    starts = (
        np.random.default_rng(settings.seed).permutation(there)[: settings.num_sequences]
        * settings.sequence_length
    )
    rows = torch.from_numpy(
        np.stack([stream.read(int(start), settings.sequence_length + 1) for start in starts])
    )
    return list(rows.split(settings.batch_sequences))


def _fit_plan(
    plan: CodedPlan,
    settings: QuantizerSettings,
    metadata: dict[str, Any],
    tries: list[tuple[float, int]],
    say: Callable[[str], None],
    progress: Callable[[int], None],
) -> float:
    fit, start = settings.fit, plan.multiplier_for(settings.ecsq.loss_nats)
    assert fit.limit_bytes is not None
    code_bytes = fit.code_bytes or 0

    def num_bytes(multiplier: float) -> int:
        size = len(pack(plan.quantized(multiplier), metadata, settings.zstd_level)) + code_bytes
        tries.append((multiplier, size))
        say(f"steps × {multiplier / start:.3g}: {size:,} bytes")
        return size

    return fit_multiplier(
        num_bytes,
        start,
        plan.multiplier_for(COARSEST_LOSS_NATS),
        fit.limit_bytes,
        fit.tolerance_fraction,
        progress,
    )
