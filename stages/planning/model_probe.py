"""Speed of quantization and of float32 predictions: python -m stages.planning.model_probe JOB RESULT

Quantizes and compresses the first matrices of a new model, and computes the seconds of the whole one by their
share of its weights.
"""

import resource
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from schemas.quantize import changed_to, quantize_compute
from schemas.quantizer_settings import CalibratedSettings, FitSettings, FittingSettings, RoundToNearest
from schemas.settings_base import Settings
from stages.core.blob.packing import estimated_blob_bytes, pack
from stages.core.calibrated.calibration import Calibration, collect_statistics
from stages.core.calibrated.table import QUANTIZERS, TextQuantizer
from stages.core.calibrated.whole_model import quantize_state
from stages.core.distributed import compute_with
from stages.core.model import GPT
from stages.core.quantizers.quantized import QuantizedModel
from stages.planning.job import ModelProbe, ModelProbeJob
from stages.processes.launch import job_of

T = TypeVar("T")

PART_PARAMETERS = 2_000_000
PREDICTED_TOKENS = 4_096
TYPICAL_FIT_TRIES = 4
_COMPRESSIONS = 2.0
"""Times that the stage compresses all weights: blob, plain rounding and each tensor, on two threads."""


def main() -> None:
    with job_of(ModelProbeJob) as (job, leave):
        compute_with(quantize_compute(job.quantizer).threads_per_process, deterministic=True)
        leave(measure_model(job))


def measure_model(job: ModelProbeJob) -> ModelProbe:
    """Measured with the threads of this process. Raises as the quantizers do."""
    began = time.perf_counter()
    model = GPT(job.model)
    model.init_weights(0)
    for param in model.parameters():
        if not param.any():  # output matrices begin at 0, which no quantizer meets later
            torch.nn.init.normal_(param, std=0.02)
    quantize_seconds, token_seconds = _quantize(job, model), _predict(job, model)
    return ModelProbe(
        quantize_seconds=quantize_seconds,
        token_seconds=token_seconds,
        inside_seconds=time.perf_counter() - began,
        peak_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    )


def _part(model: GPT) -> tuple[dict[str, Tensor], float]:
    """The first tensors up to PART_PARAMETERS weights, and how many times as large the whole model is."""
    part: dict[str, Tensor] = {}
    total = taken = 0
    for name, param in model.named_parameters():
        total += param.numel()
        if not part or taken + param.numel() <= PART_PARAMETERS:
            part[name] = param.detach()
            taken += param.numel()
    return part, total / taken


def _quantize(job: ModelProbeJob, model: GPT) -> float:
    """Seconds of the whole model: plain rounding, the method itself, and compression."""
    part, times_larger = _part(model)
    _, plain_seconds = _timed(lambda: quantize_state(part, changed_to(RoundToNearest, job.quantizer)))
    fixed = 0.0
    if isinstance(job.quantizer, CalibratedSettings):
        fixed, chosen, seconds = _by_text(job, model, part)
    else:
        chosen, seconds = _timed(lambda: quantize_state(part, job.quantizer))
    metadata = {"method": chosen.method}
    _, packing = _timed(lambda: pack(chosen, metadata, job.quantizer.zstd_level))
    growing = plain_seconds + seconds + _COMPRESSIONS * packing
    if job.quantizer.limit_bytes is not None:
        _, counting = _timed(lambda: estimated_blob_bytes(chosen, metadata, job.quantizer.zstd_level))
        growing += TYPICAL_FIT_TRIES * (seconds + counting) + packing
    return fixed + times_larger * growing


def _by_text(job: ModelProbeJob, model: GPT, part: dict[str, Tensor]) -> tuple[float, QuantizedModel, float]:
    """Seconds of the calibration as a whole, the quantized part, and its seconds."""
    quantizer: CalibratedSettings = job.quantizer  # type: ignore[assignment]
    calibration = quantizer.calibration
    shape = (calibration.batch_sequences, calibration.sequence_length + 1)
    ids = torch.randint(0, job.model.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    dtype = getattr(torch, calibration.precision)
    statistics, a_batch = _timed(lambda: collect_statistics(model, [ids], 0, dtype=dtype))
    batches = -(-(calibration.num_sequences or 128) // calibration.batch_sequences)
    settings: Settings = quantizer
    if isinstance(quantizer, FittingSettings):
        settings = quantizer.derive(fit=FitSettings())
    text = Calibration(model, statistics, [ids], {}, lambda line: None, lambda share: None)
    function = QUANTIZERS[type(quantizer)]
    assert isinstance(function, TextQuantizer)
    found, seconds = _timed(lambda: function.function(part, settings, text))
    return batches * a_batch, found.model, seconds


@torch.inference_mode()
def _predict(job: ModelProbeJob, model: GPT) -> float:
    """Seconds a token of float32 predictions."""
    rows = max(1, PREDICTED_TOKENS // job.sequence_length)
    ids = torch.zeros(rows, job.sequence_length, dtype=torch.int64)
    _, seconds = _timed(lambda: torch.log_softmax(model.logits(model.hidden(ids)), dim=-1))
    return seconds / ids.numel()


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """What `work` returns, and its seconds."""
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


if __name__ == "__main__":
    main()
