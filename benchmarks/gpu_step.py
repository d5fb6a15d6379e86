"""One training step of the `record` model on one GPU: milliseconds with spread, share of the floor, memory, and the profile.

    python -m benchmarks.gpu_step                 # needs a CUDA device; torch and numpy only
    python -m benchmarks.gpu_step --variants eager,compile --steps 30 --profile --json results.jsonl

A GPU's share of the reference's step on eight is 98,304 tokens. The floor is 6·parameters + attention operations at the
rate that a large bf16 matrix product reaches on this card. Text does not matter for speed: tokens are random.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from schemas.settings import ComputeSettings, DataSettings, ModelSettings, ScheduleSettings, TrainSettings
from stages.core.loader import BatchLoader, TokenStream
from stages.core.shards import ShardWriter
from stages.core.training import Hooks, StepMetrics, Trainer

TOKENS_A_GPU = 98_304
VARIANTS = ("eager", "compile")


def settings_for(variant: str, steps: int, micro_batch: int) -> TrainSettings:
    return TrainSettings(
        model=ModelSettings(),
        schedule=ScheduleSettings(max_steps=steps, warmdown_fraction=0.5, compile_warmup_steps=3),
        data=DataSettings(batch_tokens=TOKENS_A_GPU, sequence_length=2048, micro_batch_sequences=micro_batch),
        compute=ComputeSettings(device="cuda", num_processes=1, threads_per_process=8, compile=variant == "compile"),
    )


def step_flop(settings: TrainSettings, num_parameters: int) -> float:
    """6 operations a parameter and token, and 6·2·T·D a layer and token for causal attention, forward and backward."""
    model, length = settings.model, settings.data.sequence_length
    attention = 6 * model.num_layers * length * model.model_dim
    return settings.data.batch_tokens * (6.0 * num_parameters + attention)


def matmul_rate() -> float:
    """Operations a second of an 8,192³ bf16 product, the practical ceiling."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(10):
        a @ b
    end.record()
    torch.cuda.synchronize()
    return 10 * 2 * 8192**3 / (start.elapsed_time(end) / 1000)


def measure(settings: TrainSettings, shards: list[Path]) -> tuple[dict, Trainer]:
    rows: list[StepMetrics] = []
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    trainer = Trainer(settings, shards, Hooks(step=rows.append))
    trained = trainer.run()
    skip = min(6, len(rows) // 3)
    milliseconds = [1000 * (b.seconds - a.seconds) for a, b in zip(rows[skip:], rows[skip + 1 :], strict=False)]
    quartiles = statistics.quantiles(milliseconds, n=4)
    return {
        "median_ms": statistics.median(milliseconds),
        "quartiles_ms": [quartiles[0], quartiles[2]],
        "tokens_per_second": settings.data.batch_tokens / statistics.median(milliseconds) * 1000,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "warmup_seconds": trained.warmup_seconds,
        "wall_seconds": time.perf_counter() - began,
        "losses": [round(row.loss, 4) for row in rows[:: max(1, len(rows) // 6)]],
    }, trainer


def profile(trainer: Trainer, shards: list[Path], steps: int = 3) -> str:
    trainer.loader = BatchLoader(TokenStream(shards), trainer.settings.data, seed=0, pin=True)
    trainer._step(0, 0.1, 0.95)
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        for step in range(steps):
            trainer._step(step, 0.1, 0.95)
        torch.cuda.synchronize()
    trainer.loader.close()
    return profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=40, max_name_column_width=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--micro-batch", type=int, default=48, help="sequences in one forward pass")
    parser.add_argument("--profile", type=Path, help="write the last variant's profile here")
    parser.add_argument("--json", type=Path, help="append results here")
    options = parser.parse_args()
    rate = matmul_rate()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16 product {rate / 1e12:.0f} TFLOP/s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        with ShardWriter(Path(folder), "train", 100_000_000) as writer:
            writer.write(np.random.default_rng(0).integers(3, 1024, 20_000_000).astype(np.uint16))
        for variant in options.variants.split(","):
            settings = settings_for(variant, options.steps, options.micro_batch)
            result, trainer = measure(settings, writer.paths)
            flop = step_flop(settings, sum(param.numel() for param in trainer.model.parameters()))
            result |= {"variant": variant, "device": torch.cuda.get_device_name(), "floor_ms": flop / rate * 1000}
            print(
                f"{variant}: {result['median_ms']:.1f} ms a step ({result['quartiles_ms'][0]:.1f}-{result['quartiles_ms'][1]:.1f}), "
                f"floor {result['floor_ms']:.1f} ms = {result['floor_ms'] / result['median_ms']:.0%} of it, "
                f"{result['tokens_per_second']:,.0f} tokens/s, {result['peak_gib']:.1f} GiB, warm-up {result['warmup_seconds']:.0f} s, "
                f"losses {result['losses']}",
                flush=True,
            )
            if options.json:
                with options.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(result) + "\n")
        if options.profile:
            table = profile(trainer, writer.paths)
            options.profile.write_text(table)
            print("\n".join(line[:92] + line[-110:] for line in table.splitlines()))


if __name__ == "__main__":
    main()
