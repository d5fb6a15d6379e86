"""Job of the worker process that quantizes with text, and its result."""

from pathlib import Path
from typing import Any

from pydantic import NonNegativeFloat, PositiveFloat

from schemas.base import Schema
from schemas.model_settings import ModelSettings
from schemas.quantize import FitTry, QuantizeSpec
from schemas.tensor_formats import StoredFormat


class QuantizingJob(Schema):
    """Quantize the safetensors file `weights` by `spec`, with text of the training split's `shards`.

    `metadata` is what the blob will hold: its length counts where a limit has to be met.
    """

    model: ModelSettings
    weights: Path
    shards: tuple[Path, ...]
    spec: QuantizeSpec
    metadata: dict[str, Any]


class TensorEntry(Schema):
    """One quantized tensor, whose values lie in the worker's file; `step` of one that ecsq coded."""

    name: str
    format: StoredFormat
    step: PositiveFloat | None


class QuantizingOutcome(Schema):
    """The tensors in the order of the model, and what was measured: see `CalibratedModel`."""

    tensors: tuple[TensorEntry, ...]
    divergence_nats: float
    text_seconds: NonNegativeFloat
    multiplier: PositiveFloat | None
    divergences: dict[str, float]
    tries: tuple[FitTry, ...]
