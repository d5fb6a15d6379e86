"""The process that reads a calibration text for `quantize`, started by torchrun: python -m
stages.quantizing.worker JOB.json RESULT.json

In: the merged weights, shards of the training split, the spec, and the bytes that the blob may have. Out: the
    quantized tensors as
quantized.safetensors beside RESULT.json, and in it the steps and what was measured.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

from schemas.errors import SpecError, StageError
from schemas.quantizer_settings import QUANTIZER_OF_METHOD, CalibratedSettings
from schemas.settings import ModelSettings
from schemas.settings_base import from_dict
from stages.core.calibrated.coded_model import LimitTooSmallError
from stages.core.calibrated.with_text import CalibratedModel, quantize_with_text
from stages.core.loader import TokenStream
from stages.core.quantizers.by_rules import FormatRuleError
from stages.core.quantizers.coded_grid import CodedGrid
from stages.core.quantizers.quantized import QuantizedModel, QuantizedTensor
from stages.processes.launch import child_result, say_progress

log = logging.getLogger(__name__)

TENSORS_NAME = "quantized.safetensors"
_MEASURED = ("divergence_nats", "multiplier", "divergences", "tries")


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    settings = from_dict(QUANTIZER_OF_METHOD[job["spec"]["method"]], job["spec"])
    assert isinstance(settings, CalibratedSettings)
    with child_result(Path(sys.argv[2])) as leave:
        stream = TokenStream([Path(path) for path in job["shards"]])
        try:
            found = quantize_with_text(
                load_file(job["weights"]),
                from_dict(ModelSettings, job["model"]),
                stream,
                settings,
                job["metadata"],
                log.info,
                lambda done, total: say_progress(done, total, "calibration steps"),
            )
        except LimitTooSmallError as error:
            raise SpecError(f"quantize.{error}") from error
        except FormatRuleError as error:
            raise SpecError(f"quantize.rules: {error}") from error
        except ValueError as error:
            raise StageError(f"the merged model cannot be quantized: {error}") from error
        Path(sys.argv[2]).with_name(TENSORS_NAME).write_bytes(save(_as_tensors(found.model)))
        leave(
            {
                "entries": [[tensor.name, tensor.format] for tensor in found.model.tensors],
                "steps": {
                    tensor.name: tensor.grid.step for tensor in found.model.tensors if tensor.grid is not None
                },
                **{name: getattr(found, name) for name in _MEASURED},
            }
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


def read_calibrated(method: str, folder: Path, told: dict[str, Any]) -> CalibratedModel:
    """What a child left: its JSON result is `told`, its tensors' file in `folder` is removed."""
    parts = load_file(folder / TENSORS_NAME)
    (folder / TENSORS_NAME).unlink()
    tensors = []
    for name, tensor_format in told["entries"]:
        grid = (
            CodedGrid(told["steps"][name], parts[f"{name}/rows"], parts[f"{name}/columns"])
            if name in told["steps"]
            else None
        )
        scales, ratios = parts.get(f"{name}/scales"), parts.get(f"{name}/clip_ratios")
        tensors.append(QuantizedTensor(name, tensor_format, parts[f"{name}/values"], scales, ratios, grid))
    return CalibratedModel(QuantizedModel(method, tuple(tensors)), **{name: told[name] for name in _MEASURED})


if __name__ == "__main__":
    main()
