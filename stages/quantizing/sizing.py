"""Size estimate before training: a model's parameters by part, and the approximate bytes of its artifact.

The estimate takes trained rows for Gaussian. Then the largest of C values lies near m = Φ⁻¹(1 − 1/2C)
standard deviations. A grid of ±L levels scaled to it has steps of m/L. A symbol then has log2(L·sqrt(2πe)/m)
bits of entropy, which zstandard reaches to a few per cent. Heavier tails make the blob smaller, a clip search
makes it larger.

The bytes of ecsq depend on the trained weights. Its estimate was measured on the presets `demo` and `medium`:
0.37 bits a weight fewer for each doubling of the loss that a weight may cost.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch

from schemas.model_settings import ModelSettings
from schemas.quantizer_settings import Ecsq, QuantizerSettings
from schemas.tensor_formats import format_for
from schemas.train_settings import OptimizerSettings
from stages.core.model import GPT
from stages.core.parameter_groups import group_parameters

_PARTS = (
    ("tok_emb", "token embedding"),
    (".attn.q_gain", "controls"),
    (".attn.head_gate", "controls"),
    ("head.weight", "output head"),
    (".attn.", "attention"),
    (".mlp.", "mlp"),
    ("value_embedding", "value embedding"),
)
_CODER_OVERHEAD = 1.03
_BYTES = {"fp16": 2.0, "fp32": 4.0}
_COMPRESSED_SHARE = {"fp16": 0.93, "fp32": 0.93}
_HEADER_BYTES_PER_TENSOR = 24
_CODED_BITS, _CODED_LOSS_PER_WEIGHT, _CODED_BITS_PER_OCTAVE = 2.99, 0.001 / 3_685_402, 0.37


@dataclass(frozen=True)
class ModelSize:
    """Counts of a model that was built but never filled. `idle` and `frozen` parameters get no update."""

    num_parameters: int
    parts: dict[str, int]
    idle: dict[str, int]
    frozen: dict[str, int]
    matrix_parameters: int
    estimated_blob_bytes: int


def measure_model(
    settings: ModelSettings, optimizer: OptimizerSettings, quantizer: QuantizerSettings
) -> ModelSize:
    """Build the model without memory (meta device) and count.

    Raises ValueError for settings that do not fit together.
    """
    with torch.device("meta"):
        model = GPT(settings)
    params = dict(model.named_parameters())
    groups = {group.name: group.names for group in group_parameters(model, optimizer)}
    parts: dict[str, int] = {}
    for name, param in params.items():
        parts[_part(name)] = parts.get(_part(name), 0) + param.numel()
    stored_as = {name: format_for(name, quantizer.rules) for name in params}
    integers = sum(
        params[name].numel() for name, tensor_format in stored_as.items() if tensor_format.startswith("int")
    )
    blob_bytes = sum(
        params[name].numel() * coded_bits(quantizer.loss_budget_nats, integers) / 8
        + sum(params[name].shape) * 1.5
        if isinstance(quantizer, Ecsq) and tensor_format.startswith("int")
        else estimated_bytes(tuple(params[name].shape), tensor_format)
        for name, tensor_format in stored_as.items()
    )
    return ModelSize(
        num_parameters=sum(param.numel() for param in params.values()),
        parts=parts,
        idle={name: params[name].numel() for name in groups.get("idle", ())},
        frozen={name: params[name].numel() for name in groups.get("frozen", ())},
        matrix_parameters=sum(params[name].numel() for name in groups.get("matrices", ())),
        estimated_blob_bytes=round(blob_bytes),
    )


def coded_bits(loss_nats: float, num_weights: int) -> float:
    """Bits a weight of ecsq that spends `loss_nats` on `num_weights` weights, about."""
    octaves = math.log2(loss_nats / max(num_weights, 1) / _CODED_LOSS_PER_WEIGHT)
    return max(_CODED_BITS - _CODED_BITS_PER_OCTAVE * octaves, 0.5)


def estimated_bytes(shape: tuple[int, ...], stored_as: str) -> float:
    """Compressed bytes of one tensor, header share included."""
    count = math.prod(shape)
    if stored_as in _BYTES:
        return count * _BYTES[stored_as] * _COMPRESSED_SHARE[stored_as] + _HEADER_BYTES_PER_TENSOR
    columns = max(shape[-1], 2)
    levels = 2 ** (int(stored_as.removeprefix("int")) - 1) - 1
    largest = NormalDist().inv_cdf(1 - 1 / (2 * columns))
    bits = max(math.log2(max(levels, 1) * math.sqrt(2 * math.pi * math.e) / largest), 0.5)
    return count * bits / 8 * _CODER_OVERHEAD + 2 * shape[0] + _HEADER_BYTES_PER_TENSOR


def _part(name: str) -> str:
    return next((part for mark, part in _PARTS if mark in name), "controls")
