"""Quantizing the 25.2-million-parameter model: our clip search against the plain way, side by side.

    python -m benchmarks.quantization [--runs 5] [--json results.jsonl]

The plain way is what the field's scripts do: for each tensor and each of five candidates a `torch.quantile`
of the rows' magnitudes as clip, the tensor rounded, its mean squared error taken, and the best candidate kept
for the whole tensor. Runs alternate; the figures are medians. Compression is no part of the comparison and is
timed apart.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Figure, alternate, compared, parser_for, report, timed
from presets import load_preset
from schemas.quantizer_settings import GptqLite
from schemas.tensor_formats import format_for
from stages.core.blob.packing import pack
from stages.core.calibrated.whole_model import quantize_state
from stages.core.model import GPT
from stages.core.quantizers.quantized import QuantizedModel, bits_of

PLAIN_QUANTILES = (0.999, 0.9995, 0.9999, 0.99999, 1.0)
LIMIT_RATIO = 10.0


def weights_of_record(seed: int = 0) -> dict[str, Tensor]:
    """Tensors of the record preset's shapes, with tails heavier than a normal distribution's and rows of
    unequal size.
    """
    generator = np.random.default_rng(seed)
    state = {}
    for name, tensor in GPT(load_preset("record").train.model).state_dict().items():
        values = generator.standard_t(8, tensor.shape)
        if tensor.dim() == 2:
            values *= np.exp(generator.normal(0, 0.25, (len(tensor), 1)))
        state[name] = torch.from_numpy(values.astype(np.float32) * np.float32(0.03))
    return state


def plain_quantize(state: dict[str, Tensor], settings: GptqLite) -> dict[str, Tensor]:
    """The peer: dequantized tensors, integer formats through five quantiles for each tensor, the rest
    cast.
    """
    result = {}
    for name, weight in state.items():
        tensor_format = format_for(name, settings.rules)
        bits = bits_of(tensor_format)
        if bits is None:
            result[name] = weight.half().float() if tensor_format == "fp16" else weight
            continue
        limit = 2 ** (bits - 1) - 1
        best_error = float("inf")
        for quantile in PLAIN_QUANTILES:
            clip = torch.quantile(weight.abs(), quantile, dim=1)
            scale = (clip / limit).clamp_min(1e-7).half().float().unsqueeze(1)
            stored = torch.clamp(torch.round(weight / scale), -limit, limit).to(torch.int8).float() * scale
            error = (stored - weight).square().mean().item()
            if error < best_error:
                best_error, result[name] = error, stored
    return result


def tensors_with_more_error(
    state: dict[str, Tensor], ours: QuantizedModel, plain: dict[str, Tensor]
) -> list[str]:
    """Names of tensors whose squared error is larger on our side."""

    def error(tensor: Tensor, name: str) -> float:
        return (tensor.double() - state[name].double()).square().sum().item()

    return [
        tensor.name
        for tensor in ours.tensors
        if error(tensor.dequantized(), tensor.name) > error(plain[tensor.name], tensor.name)
    ]


def main() -> None:
    options = parser_for("quantization", "Clip search for each row against the plain way.").parse_args()
    state, settings = weights_of_record(), GptqLite()
    num_parameters = sum(tensor.numel() for tensor in state.values())
    results: dict[str, Any] = {}

    def ours() -> None:
        results["ours"] = quantize_state(state, settings)

    def plain() -> None:
        results["plain"] = plain_quantize(state, settings)

    samples = alternate({"ours": ours, "plain": plain}, options.runs)
    worse = tensors_with_more_error(state, results["ours"], results["plain"])
    (pack_seconds, _), blob = timed(lambda: pack(results["ours"], {}, settings.zstd_level))
    what = (
        f"{num_parameters:,} parameters; {len(settings.clip_candidates)} clip ratios a row, "
        f"{len(PLAIN_QUANTILES)} quantiles a tensor"
    )
    count = len(results["ours"].tensors)
    figures = [
        compared("quantization", what, samples["ours"], samples["plain"], LIMIT_RATIO),
        Figure(
            "quantization",
            "tensors with more error than plain",
            f"{len(worse)} of {count}",
            "",
            None,
            "0",
            not worse,
            {"worse": worse},
        ),
        Figure(
            "quantization",
            f"compression at level {settings.zstd_level}, apart",
            f"{pack_seconds:.1f} s",
            f"{len(blob):,} bytes",
        ),
    ]
    report(figures, options.json)


if __name__ == "__main__":
    main()
