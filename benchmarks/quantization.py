"""Quantizing the 25.2-million-parameter model: our clip search against the plain way, side by side.

    python -m benchmarks.quantization [--runs 5] [--json results.jsonl]

The plain way is what the field's scripts do: for each tensor and each of five candidates a `torch.quantile` of the rows'
magnitudes as clip, the tensor rounded, its mean squared error taken, and the best candidate kept for the whole tensor. Runs
alternate; the figures are medians. Compression is no part of the comparison and is timed apart.
"""

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from presets import load_preset
from schemas.settings import QuantizerSettings, format_for
from stages.core.model import GPT
from stages.core.packing import pack
from stages.core.quantizers.methods import quantize_state
from stages.core.quantizers.quantized import QuantizedModel, bits_of

T = TypeVar("T")

PLAIN_QUANTILES = (0.999, 0.9995, 0.9999, 0.99999, 1.0)
LIMIT_RATIO = 10.0


def weights_of_record(seed: int = 0) -> dict[str, Tensor]:
    """Tensors of the record preset's shapes, with tails heavier than a normal distribution's and rows of unequal size."""
    generator = np.random.default_rng(seed)
    state = {}
    for name, tensor in GPT(load_preset("record").train.model).state_dict().items():
        values = generator.standard_t(8, tensor.shape)
        if tensor.dim() == 2:
            values *= np.exp(generator.normal(0, 0.25, (len(tensor), 1)))
        state[name] = torch.from_numpy(values.astype(np.float32) * np.float32(0.03))
    return state


def plain_quantize(state: dict[str, Tensor], settings: QuantizerSettings) -> dict[str, Tensor]:
    """The peer: dequantized tensors, integer formats through five quantiles for each tensor, the rest cast."""
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


def timed(work: Callable[[], T]) -> tuple[float, T]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def tensors_with_more_error(state: dict[str, Tensor], ours: QuantizedModel, plain: dict[str, Tensor]) -> list[str]:
    """Names of tensors whose squared error is larger on our side."""

    def error(tensor: Tensor, name: str) -> float:
        return (tensor.double() - state[name].double()).square().sum().item()

    return [tensor.name for tensor in ours.tensors if error(tensor.dequantized(), tensor.name) > error(plain[tensor.name], tensor.name)]


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quantization", description="Clip search for each row against the plain way."
    )
    parser.add_argument("--runs", type=int, default=5, help="alternating runs of each side (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="append the figures to this file as one JSON line")
    options = parser.parse_args()
    state, settings = weights_of_record(), QuantizerSettings()
    num_parameters = sum(tensor.numel() for tensor in state.values())

    ours_seconds, plain_seconds = [], []
    for _ in range(options.runs):
        seconds, ours = timed(lambda: quantize_state(state, settings))
        ours_seconds.append(seconds)
        seconds, plain = timed(lambda: plain_quantize(state, settings))
        plain_seconds.append(seconds)
    worse = tensors_with_more_error(state, ours, plain)
    pack_seconds, blob = timed(lambda: pack(ours, {}, settings.zstd_level))

    median_ours, median_plain = statistics.median(ours_seconds), statistics.median(plain_seconds)
    ratio = median_plain / median_ours
    table = Table(title=f"Quantizing {num_parameters:,} parameters, median of {options.runs} alternating runs")
    for column in ("", "seconds", "min to max"):
        table.add_column(column, justify="left" if not column else "right")
    for label, samples in (
        (f"ours: {len(settings.clip_candidates)} clip ratios for each row", ours_seconds),
        (f"plain: {len(PLAIN_QUANTILES)} quantiles for each tensor", plain_seconds),
    ):
        table.add_row(label, f"{statistics.median(samples):.3f}", f"{min(samples):.3f} to {max(samples):.3f}")
    table.add_row("ratio", f"{ratio:.1f}×", f"goal: {LIMIT_RATIO:.0f}×")
    table.add_row("tensors with more error than plain", str(len(worse)), f"of {len(ours.tensors)}")
    table.add_row(f"compression at level {settings.zstd_level}, apart", f"{pack_seconds:.1f}", f"{len(blob):,} bytes")
    Console().print(table)
    if options.json:
        line = {
            "benchmark": "quantization",
            "ours_seconds": ours_seconds,
            "peer_seconds": plain_seconds,
            "median_ours_seconds": median_ours,
            "median_peer_seconds": median_plain,
            "ratio": ratio,
            "goal_ratio": LIMIT_RATIO,
            "tensors_with_more_error": worse,
            "compression_seconds": pack_seconds,
            "machine": f"{platform.node()}, {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
            "commit": commit(),
        }
        with options.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
