"""A whole model by a quantizer that reads text: statistics of training text, the quantizer, and how far the
predictions move.

The quantize stage and the program that ships run this same code, so that both make the same blob.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from schemas.model_settings import ModelSettings
from schemas.quantizer_settings import CalibratedSettings, CalibrationSettings
from stages.core.calibrated.calibration import Calibration, collect_statistics
from stages.core.calibrated.coded_model import divergence, predictions
from stages.core.calibrated.table import QUANTIZERS, TextQuantizer
from stages.core.distributed import compute_with
from stages.core.loader import TokenStream
from stages.core.model import GPT
from stages.core.quantizers.quantized import QuantizedModel

MEASURED_SEQUENCES = 32


@dataclass(frozen=True)
class CalibratedModel:
    """A quantized model and what was measured on the way.

    `divergence_nats` a token of all tensors together, on training text. `text_seconds` from the first read of
    that text to the finished codes, which depend on it. The others as in QuantizedByText.
    """

    model: QuantizedModel
    divergence_nats: float
    text_seconds: float
    multiplier: float | None = None
    divergences: tuple[tuple[str, float], ...] = ()
    tries: tuple[tuple[float, int], ...] = ()


def quantize_with_text(
    state: dict[str, Tensor],
    model_settings: ModelSettings,
    stream: TokenStream,
    settings: CalibratedSettings,
    metadata: dict[str, Any],
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[float, float], None] = lambda done, total: None,
) -> CalibratedModel:
    """`state` (float32, on the CPU) by the quantizer of the settings with the text of `stream`; `metadata` is
    what the blob will hold.

    Sets the threads and the deterministic mode that the result depends on. Raises LimitTooSmallError and
    FormatRuleError as the quantizers do, and ValueError for weights that no format holds, where the stream is
    too short, and for a quantizer that reads no text.
    """
    quantizer = QUANTIZERS[type(settings)]
    if not isinstance(quantizer, TextQuantizer):
        raise ValueError(f"method {settings.method} reads no text")
    calibration = settings.calibration
    compute_with(calibration.threads, deterministic=calibration.device == "cpu")
    device = torch.device(calibration.device)
    if calibration.device == "cuda":
        torch.set_float32_matmul_precision("high")
    model = GPT(model_settings)
    model.load_state_dict(state)
    model.to(device)
    began = time.perf_counter()
    batches = [batch.to(device) for batch in calibration_batches(stream, calibration)]
    total = 2 * len(batches) + 1  # the quantizer's own work counts as much as the calibration
    dtype = getattr(torch, calibration.precision)
    statistics = collect_statistics(
        model, batches, calibration.seed, lambda done: progress(done, total), dtype
    )
    num_sequences = sum(len(batch) for batch in batches)
    say(f"calibrated on {num_sequences * calibration.sequence_length:,} tokens of training text")
    checks = batches[: max(1, MEASURED_SEQUENCES // calibration.batch_sequences)]

    def own_progress(share: float) -> None:
        progress(len(batches) * (1 + share), total)

    text = Calibration(model, statistics, checks, metadata, say, own_progress)
    found = quantizer.function(state, settings, text)
    text_seconds = time.perf_counter() - began
    expected = predictions(model, checks)
    model.load_state_dict({tensor.name: tensor.dequantized() for tensor in found.model.tensors})
    moved = divergence(expected, predictions(model, checks))
    say(f"on training text the predictions move by {moved:.5f} nats a token")
    progress(total, total)
    return CalibratedModel(found.model, moved, text_seconds, found.multiplier, found.divergences, found.tries)


def calibration_batches(stream: TokenStream, settings: CalibrationSettings) -> list[Tensor]:
    """Token ids (B, T + 1) int64: sequences drawn from the whole stream without overlap, in the order of
    the draw.

    Raises ValueError where the stream is too short.
    """
    num_sequences = settings.count_in(len(stream))
    there = settings.sequences_in(len(stream))
    starts = (
        np.random.default_rng(settings.seed).permutation(there)[:num_sequences] * settings.sequence_length
    )
    rows = torch.from_numpy(
        np.stack([stream.read(int(start), settings.sequence_length + 1) for start in starts])
    )
    return list(rows.split(settings.batch_sequences))
