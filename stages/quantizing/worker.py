"""The process that reads a calibration text for `quantize`: python -m
stages.quantizing.worker JOB.json RESULT.json

In: a `QuantizingJob`. Out: a `QuantizingOutcome`, and beside it the values of the quantized tensors as
quantized.safetensors.
"""

import logging
import sys
from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor

from schemas.errors import SpecError, StageError
from schemas.quantize import FitTry
from schemas.quantizer_settings import CalibratedSettings
from stages.core.calibrated.fit import LimitTooSmallError
from stages.core.calibrated.with_text import CalibratedModel, quantize_with_text
from stages.core.loader import TokenStream
from stages.core.quantizers.by_rules import FormatRuleError
from stages.core.quantizers.coded_grid import CodedGrid
from stages.core.quantizers.quantized import QuantizedModel, QuantizedTensor
from stages.processes.launch import job_of, say_progress
from stages.quantizing.job import QuantizingJob, QuantizingOutcome, TensorEntry

log = logging.getLogger(__name__)

TENSORS_NAME = "quantized.safetensors"


def main() -> None:
    with job_of(QuantizingJob) as (job, leave):
        assert isinstance(job.spec, CalibratedSettings)
        try:
            found = quantize_with_text(
                load_file(job.weights),
                job.model,
                TokenStream(list(job.shards)),
                job.spec,
                job.metadata,
                log.info,
                lambda done, total: say_progress(done, total, "calibration steps"),
            )
        except LimitTooSmallError as error:
            raise SpecError(str(error)) from error
        except FormatRuleError as error:
            raise SpecError(f"quantize.rules: {error}") from error
        except ValueError as error:
            raise StageError(f"the merged model cannot be quantized: {error}") from error
        Path(sys.argv[2]).with_name(TENSORS_NAME).write_bytes(save(_as_tensors(found.model)))
        leave(_outcome(found))


def _outcome(found: CalibratedModel) -> QuantizingOutcome:
    return QuantizingOutcome(
        tensors=tuple(
            TensorEntry(
                name=tensor.name, format=tensor.format, step=tensor.grid.step if tensor.grid else None
            )
            for tensor in found.model.tensors
        ),
        divergence_nats=found.divergence_nats,
        text_seconds=found.text_seconds,
        multiplier=found.multiplier,
        divergences=dict(found.divergences),
        tries=tuple(FitTry(step_multiplier=step, package_bytes=size) for step, size in found.tries),
    )


def _as_tensors(model: QuantizedModel) -> dict[str, Tensor]:
    parts: dict[str, Tensor] = {}
    for tensor in model.tensors:
        parts[f"{tensor.name}/values"] = tensor.values
        if tensor.scales is not None and tensor.clip_ratios is not None:
            parts[f"{tensor.name}/scales"], parts[f"{tensor.name}/clip_ratios"] = (
                tensor.scales,
                tensor.clip_ratios,
            )
        if tensor.grid is not None:
            parts[f"{tensor.name}/rows"], parts[f"{tensor.name}/columns"] = (
                tensor.grid.rows,
                tensor.grid.columns,
            )
    return parts


def read_calibrated(method: str, folder: Path, outcome: QuantizingOutcome) -> CalibratedModel:
    """The model that a child left: `outcome` and its tensors' file in `folder`, which is removed."""
    parts = load_file(folder / TENSORS_NAME)
    (folder / TENSORS_NAME).unlink()
    tensors = []
    for entry in outcome.tensors:
        name = entry.name
        grid = (
            None
            if entry.step is None
            else CodedGrid(entry.step, parts[f"{name}/rows"], parts[f"{name}/columns"])
        )
        scales, ratios = parts.get(f"{name}/scales"), parts.get(f"{name}/clip_ratios")
        tensors.append(QuantizedTensor(name, entry.format, parts[f"{name}/values"], scales, ratios, grid))
    return CalibratedModel(
        QuantizedModel(method, tuple(tensors)),
        outcome.divergence_nats,
        outcome.text_seconds,
        outcome.multiplier,
        tuple(outcome.divergences.items()),
        tuple((tried.step_multiplier, tried.package_bytes) for tried in outcome.tries),
    )


if __name__ == "__main__":
    main()
