"""One training step of the `record` model on one GPU: milliseconds with spread, share of the floor,
memory, checks, the profile.

    python -m benchmarks.gpu_step                 # needs a Hopper GPU; torch, numpy, sentencepiece
    python -m benchmarks.gpu_step --variants eager,compile,fused,fused --checks \\
        --profile profile.txt --json results.jsonl

    python -m torch.distributed.run --standalone --nproc-per-node 8 -m benchmarks.gpu_step --variants fused

`fused` is what the preset does: compiled, with our own kernels. A variant given twice shows how much a run
varies. QAT comes on in the last quarter of the steps, and loops, where the model has them, after a third;
neither may compile anything: the compile counter is asserted. `--model` changes the record's model:

    python -m benchmarks.gpu_step --variants fused --checks --model '{"vocab_size": 8192, "mlp_hidden": 2048,
        "leaky_slope": 0.5, "loop_passes": 3, "skip_gates": true, "parallel_residuals": "one_lane"}'

A GPU's share of the reference's step on eight is 98,304 tokens. The floor is 6·parameters + attention
operations at the rate that a large bf16 matrix product reaches on this card. Text does not matter for speed:
tokens are random.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch._dynamo
from torch.autograd import DeviceType

from benchmarks import gpu_checks as checks
from schemas.compute_settings import ComputeSettings
from schemas.model_settings import ModelSettings
from schemas.qat_settings import QatSettings
from schemas.settings_base import from_dict
from schemas.train_settings import DataSettings, ScheduleSettings, TrainSettings
from stages.core.loader import BatchLoader, TokenStream
from stages.core.shards import ShardWriter
from stages.core.trainer import Hooks, StepMetrics, Trainer

TOKENS_A_GPU = 98_304
WORLD = int(os.environ.get("WORLD_SIZE", "1"))
VARIANTS = ("eager", "compile", "fused")
LOOPS_FROM = 0.35
TILES = [
    (256, 128, 64, 8, 4, 1),
    (256, 128, 64, 8, 3, 1),
    (128, 256, 64, 8, 3, 1),
    (128, 128, 64, 4, 3, 2),
    (128, 128, 32, 4, 4, 2),
]


def settings_for(variant: str, steps: int, micro_batch: int, model: ModelSettings) -> TrainSettings:
    return TrainSettings(
        model=model,
        schedule=ScheduleSettings(
            max_steps=steps,
            warmdown_fraction=0.5,
            compile_warmup_steps=3,
            loop_start_fraction=LOOPS_FROM if model.loop_passes > 1 else 0.0,
        ),
        data=DataSettings(
            batch_tokens=WORLD * TOKENS_A_GPU, sequence_length=2048, micro_batch_sequences=micro_batch
        ),
        qat=QatSettings(start_lr_scale=0.5),
        compute=ComputeSettings(
            device="cuda",
            precision="bfloat16",
            num_processes=WORLD,
            threads_per_process=8,
            compile=variant != "eager",
            fused_kernels=variant == "fused",
        ),
    )


def step_flop(settings: TrainSettings, num_parameters: int) -> float:
    """A GPU's share: 6 operations a parameter and token, and 6·2·T·D a layer and token for causal
    attention, forward and backward. Of a model with loops: the steps before they begin.
    """
    model, length = settings.model, settings.data.sequence_length
    attention = 6 * model.num_layers * length * model.model_dim
    return TOKENS_A_GPU * (6.0 * num_parameters + attention)


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
    graphs_at_step: list[int] = []

    def step(row: StepMetrics) -> None:
        rows.append(row)
        graphs_at_step.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    torch.cuda.reset_peak_memory_stats()
    graphs_before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    began = time.perf_counter()
    trainer = Trainer(settings, shards, Hooks(step=step))
    trained = trainer.run()
    if trainer.rank > 0:
        return {}, trainer
    assert graphs_at_step[-1] == graphs_at_step[0], "QAT or loops compiled something again"
    assert rows[-1].qat_on
    assert not rows[len(rows) // 2].qat_on
    skip = min(6, len(rows) // 3)
    pairs = list(zip(rows[skip:], rows[skip + 1 :], strict=False))
    loops_from = LOOPS_FROM * settings.schedule.max_steps if settings.model.loop_passes > 1 else len(rows) + 1
    plain = [1000 * (b.seconds - a.seconds) for a, b in pairs if not b.qat_on and b.step <= loops_from]
    looped = [1000 * (b.seconds - a.seconds) for a, b in pairs if not b.qat_on and a.step > loops_from]
    with_qat = [1000 * (b.seconds - a.seconds) for a, b in pairs if a.qat_on]
    quartiles = statistics.quantiles(plain, n=4)
    return {
        "median_ms": statistics.median(plain),
        "quartiles_ms": [quartiles[0], quartiles[2]],
        "mean_ms": statistics.mean(plain),
        "median_ms_looped": statistics.median(looped) if looped else None,
        "median_ms_with_qat": statistics.median(with_qat),
        "tokens_per_second": settings.data.batch_tokens / statistics.median(plain) * 1000,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "compiled_graphs": graphs_at_step[-1] - graphs_before,
        "warmup_seconds": trained.warmup_seconds,
        "wall_seconds": time.perf_counter() - began,
        "losses": [row.loss for row in rows],
    }, trainer


def profile(trainer: Trainer, shards: list[Path], steps: int = 3) -> str:
    trainer.loader = BatchLoader(TokenStream(shards), trainer.settings.data, seed=0, pin=True)
    trainer._step(0, 0.1, 0.95, False)
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        for step in range(steps):
            trainer._step(step, 0.1, 0.95, False)
        torch.cuda.synchronize()
    trainer.loader.close()
    events = [
        event
        for event in profiler.key_averages()
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    events.sort(key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in events)
    lines = [f"{total / steps / 1000:9.3f} ms a step in kernels"]
    lines += [
        f"{e.self_device_time_total / steps / 1000:9.3f} ms {e.count / steps:6.1f} times  {e.key[:160]}"
        for e in events[:90]
    ]
    return "\n".join(lines) + "\n"


def attempt(name: str, action: Callable[[], dict], options: argparse.Namespace) -> None:
    """Print and keep the figures of one part; a part that fails is told and does not take the others with
    it.
    """
    try:
        found = action()
    except Exception:  # noqa: BLE001
        found = {"failed": traceback.format_exc()[-1500:]}
    shown = (f"{value:.5g}" if isinstance(value, float) else str(value) for value in found.values())
    print(
        f"{name}:",
        *(f"  {key}: {value}" for key, value in zip(found, shown, strict=True)),
        sep="\n",
        flush=True,
    )
    keep(options, {"part": name, **found})


def keep(options: argparse.Namespace, row: dict) -> None:
    if options.json:
        with options.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--micro-batch", type=int, default=48, help="sequences in one forward pass")
    parser.add_argument(
        "--checks",
        action="store_true",
        help="agreement, kernels against PyTorch, scoring, copies of the weights",
    )
    parser.add_argument("--profile", type=Path, help="write the last variant's profile here")
    parser.add_argument("--model", type=json.loads, default={}, help="changes of the model, as JSON")
    parser.add_argument("--json", type=Path, help="append results here")
    options = parser.parse_args()
    if WORLD > 1 and (options.checks or options.profile):
        parser.error("--checks and --profile are for one process")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if os.environ.get("RANK", "0") != "0":
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        options.json = None
    model = from_dict(ModelSettings, options.model)
    rate = matmul_rate()
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16 product {rate / 1e12:.0f} TFLOP/s",
        flush=True,
    )
    if options.checks:
        attempt("kernels against float32", checks.check_kernels, options)
        attempt("one layer's kernels, ms", lambda: checks.time_kernels(TILES), options)
        attempt("attention over the nearest", checks.check_attention, options)
    with tempfile.TemporaryDirectory() as folder:
        with ShardWriter(Path(folder), "train", 100_000_000) as writer:
            # Skewed, so that there is something to learn and a wrong gradient shows in the loss.
            spread = np.random.default_rng(0).random(20_000_000) ** 4
            writer.write((3 + (model.vocab_size - 4) * spread).astype(np.uint16))
        trainer = None
        for variant in options.variants.split(","):
            settings = settings_for(variant, options.steps, options.micro_batch, model)
            try:
                result, trainer = measure(settings, writer.paths)
            except Exception:  # noqa: BLE001
                print(variant, "failed:", traceback.format_exc()[-3000:], flush=True)
                continue
            if not result:
                continue
            flop = step_flop(settings, sum(param.numel() for param in trainer.model.parameters()))
            result |= {
                "variant": variant,
                "device": torch.cuda.get_device_name(),
                "num_gpus": WORLD,
                "floor_ms": flop / rate * 1000,
            }
            shown = [round(loss, 4) for loss in result["losses"][:: max(1, options.steps // 6)]]
            print(
                f"{variant}: {result['median_ms']:.1f} ms a step "
                f"({result['quartiles_ms'][0]:.1f}-{result['quartiles_ms'][1]:.1f}), "
                f"mean {result['mean_ms']:.1f}, looped {result['median_ms_looped']}, "
                f"with QAT {result['median_ms_with_qat']:.1f}, {result['compiled_graphs']} graphs, "
                f"floor {result['floor_ms']:.1f} ms = {result['floor_ms'] / result['median_ms']:.0%} of it, "
                f"{result['tokens_per_second']:,.0f} tokens/s, {result['peak_gib']:.1f} GiB, "
                f"warm-up {result['warmup_seconds']:.0f} s, "
                f"losses {shown}, last {result['losses'][-1]:.6f}",
                flush=True,
            )
            keep(options, result)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        assert trainer is not None, "no variant ran"
        last: Trainer = trainer
        if options.profile:
            options.profile.write_text(profile(last, writer.paths))
            print("\n".join(options.profile.read_text().splitlines()[:45]), flush=True)
        if options.checks:
            attempt("copies of the weights", lambda: checks.time_copies(last), options)
            attempt(
                "against the CPU in float32",
                lambda: checks.check_agreement(last, options.micro_batch),
                options,
            )
            attempt(
                "smoke on the CPU in float32 and here in bfloat16",
                lambda: checks.check_smoke(writer.paths),
                options,
            )
            attempt(
                "scoring on one GPU",
                lambda: checks.time_scoring(last.model, TokenStream(writer.paths)),
                options,
            )


if __name__ == "__main__":
    main()
