"""The process that reads a calibration text for `quantize`, started by torchrun: python -m stages.quantize_rank JOB.json RESULT.json

In: the merged weights, shards of the training split, the spec, and the bytes that the blob may have. Out: the quantized tensors as
quantized.safetensors beside RESULT.json, and in it the steps and what was measured.
"""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from schemas.errors import SpecError, StageError
from schemas.settings import CalibrationSettings, ModelSettings, QuantizerSettings, from_dict
from stages.core.loader import TokenStream
from stages.core.model import GPT
from stages.core.packing import pack
from stages.core.quantizers.calibration import collect_statistics
from stages.core.quantizers.coded_grid import CodedGrid
from stages.core.quantizers.coded_model import (
    COARSEST_LOSS_NATS,
    MAX_FIT_TRIES,
    CodedPlan,
    LimitTooSmallError,
    divergence,
    fit_multiplier,
    plan_coded,
    predictions,
    with_measured_shares,
)
from stages.core.quantizers.methods import FormatRuleError, quantize_state
from stages.core.quantizers.quantized import QuantizedModel, QuantizedTensor
from stages.launch import child_result, say_progress

log = logging.getLogger(__name__)

TENSORS_NAME = "quantized.safetensors"
_MEASURED_SEQUENCES = 32
Step = Callable[[int], None]


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    settings = from_dict(QuantizerSettings, job["spec"])
    with child_result(Path(sys.argv[2])) as leave:
        torch.set_num_threads(settings.calibration.threads)
        torch.use_deterministic_algorithms(True)
        model = GPT(from_dict(ModelSettings, job["model"]))
        state = load_file(job["weights"])
        model.load_state_dict(state)
        stream = TokenStream([Path(path) for path in job["shards"]])
        try:
            quantized, told = quantize_with_text(state, model, stream, settings, job["metadata"])
        except FormatRuleError as error:
            raise SpecError(f"quantize.rules: {error}") from error
        except LimitTooSmallError as error:
            raise SpecError(f"quantize.fit.limit_bytes = {settings.fit.limit_bytes}: {error}, script included") from error
        except ValueError as error:
            raise StageError(f"the merged model cannot be quantized: {error}") from error
        Path(sys.argv[2]).with_name(TENSORS_NAME).write_bytes(save(_as_tensors(quantized)))
        grids = {tensor.name: tensor.grid.step for tensor in quantized.tensors if tensor.grid is not None}
        entries = [[tensor.name, tensor.format] for tensor in quantized.tensors]
        leave({"entries": entries, "steps": grids, **told})


def quantize_with_text(
    state: dict[str, Tensor], model: GPT, stream: TokenStream, settings: QuantizerSettings, metadata: dict[str, Any]
) -> tuple[QuantizedModel, dict[str, Any]]:
    """The model by gptq or ecsq, and what was found on the way: divergences, the multiplier. Raises as the methods do."""
    calibration = settings.calibration
    batches = calibration_batches(stream, calibration)
    measured_shares = settings.method == "ecsq" and settings.ecsq.measured_shares
    total = len(batches) + (100 if measured_shares else 0) + (MAX_FIT_TRIES if settings.fit.limit_bytes else 1)
    statistics = collect_statistics(model, batches, calibration.seed, lambda done: say_progress(done, total, "calibration steps"))
    log.info("calibrated on %s tokens of training text", f"{calibration.num_sequences * calibration.sequence_length:,}")
    checks = batches[: max(1, _MEASURED_SEQUENCES // calibration.batch_sequences)]
    told: dict[str, Any] = {"divergences": {}, "multiplier": None}
    if settings.method == "gptq":
        quantized = quantize_state(state, settings, statistics)
    else:
        plan = plan_coded(state, settings, statistics)
        multiplier = plan.multiplier_for(settings.ecsq.loss_nats)
        if settings.ecsq.measured_shares:
            share = 100 / len(plan.matrices)
            plan, told["divergences"] = with_measured_shares(
                plan, model, checks, multiplier, lambda done: say_progress(len(batches) + done * share, total, "calibration steps")
            )
        if settings.fit.limit_bytes is not None:
            multiplier = _fit(plan, settings, metadata, multiplier, lambda done: say_progress(total - MAX_FIT_TRIES + done, total, "steps"))
        told["multiplier"] = multiplier
        quantized = plan.quantized(multiplier)
    expected = predictions(model, checks)
    model.load_state_dict({tensor.name: tensor.dequantized() for tensor in quantized.tensors})
    told["divergence_nats"] = divergence(expected, predictions(model, checks))
    log.info("on training text the predictions move by %.5f nats a token", told["divergence_nats"])
    say_progress(total, total, "calibration steps")
    return quantized, told


def _fit(plan: CodedPlan, settings: QuantizerSettings, metadata: dict[str, Any], start: float, progress: Step) -> float:
    fit = settings.fit
    assert fit.limit_bytes is not None
    code_bytes = fit.code_bytes or 0

    def num_bytes(multiplier: float) -> int:
        size = len(pack(plan.quantized(multiplier), metadata, settings.zstd_level)) + code_bytes
        log.info("steps × %.3g: %s bytes", multiplier / start, f"{size:,}")
        return size

    return fit_multiplier(num_bytes, start, plan.multiplier_for(COARSEST_LOSS_NATS), fit.limit_bytes, fit.tolerance_fraction, progress)


def calibration_batches(stream: TokenStream, settings: CalibrationSettings) -> list[Tensor]:
    """Token ids (B, T + 1) int64: sequences drawn from the whole stream without overlap, in the order of the draw.

    Raises SpecError when the text is shorter than asked for.
    """
    there = (len(stream) - 1) // settings.sequence_length
    if there < settings.num_sequences:
        raise SpecError(
            f"quantize.calibration.num_sequences = {settings.num_sequences}: the training split has {there} sequences of "
            f"{settings.sequence_length} tokens; ask for fewer or shorter ones"
        )
    starts = np.random.default_rng(settings.seed).permutation(there)[: settings.num_sequences] * settings.sequence_length
    rows = torch.from_numpy(np.stack([stream.read(int(start), settings.sequence_length + 1) for start in starts]))
    return list(rows.split(settings.batch_sequences))


def _as_tensors(model: QuantizedModel) -> dict[str, Tensor]:
    parts: dict[str, Tensor] = {}
    for tensor in model.tensors:
        parts[f"{tensor.name}/values"] = tensor.values
        if tensor.scales is not None and tensor.clip_ratios is not None:
            parts[f"{tensor.name}/scales"], parts[f"{tensor.name}/clip_ratios"] = tensor.scales, tensor.clip_ratios
        if tensor.grid is not None:
            parts[f"{tensor.name}/rows"], parts[f"{tensor.name}/columns"] = tensor.grid.rows, tensor.grid.columns
    return parts


def read_quantized(method: str, folder: Path, told: dict[str, Any]) -> QuantizedModel:
    """The model that a child left in `folder`; its tensors' file is removed."""
    parts = load_file(folder / TENSORS_NAME)
    (folder / TENSORS_NAME).unlink()
    tensors = []
    for name, tensor_format in told["entries"]:
        grid = CodedGrid(told["steps"][name], parts[f"{name}/rows"], parts[f"{name}/columns"]) if name in told["steps"] else None
        scales, ratios = parts.get(f"{name}/scales"), parts.get(f"{name}/clip_ratios")
        tensors.append(QuantizedTensor(name, tensor_format, parts[f"{name}/values"], scales, ratios, grid))
    return QuantizedModel(method, tuple(tensors))


if __name__ == "__main__":
    main()
