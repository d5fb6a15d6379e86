"""Training on the CPU: our loop against the plain script (benchmarks/plain_script.py), tokens per second
at the same shapes.

    python -m benchmarks.training [--runs 5] [--json results.jsonl]

Both start from the same weights and see the same batches, in the precision that `auto` means here, with fp32
weights; each run is another seed, and the first three steps of it are not timed. The plain script runs with
OpenMP's default or with threads that wait, whichever is faster in a trial. After equal tokens the losses must
agree to within the spread between seeds.
"""

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Figure, Samples, compared, parser_for, report
from benchmarks.workers import Worker, serve, shard_paths, sides, workers
from presets import load_preset
from schemas.train_settings import TrainSettings
from stages.store.machine import resolve_precision

GOAL_RATIO = 1.5
UNTIMED_STEPS = 3
# tokens in a batch, sequences in one of our forward passes, timed steps of a run
SHAPES = ((2_048, 8, 40), (16_384, 32, 10))
SEEDS = (1337, 1, 2, 3, 4, 5, 6, 7)
LR_SCALE, MOMENTUM = 1.0, 0.95


def settings_for(
    batch_tokens: int, micro_batch: int, num_steps: int, seed: int, processes: int = 1, threads: int = 2
) -> TrainSettings:
    """The demo's model and optimizer, constant learning rate and momentum, neither snapshots nor QAT."""
    base = resolve_precision(load_preset("demo").train)
    return replace(
        base,
        seed=seed,
        optimizer=replace(base.optimizer, muon_momentum=MOMENTUM, muon_momentum_start=MOMENTUM),
        schedule=replace(base.schedule, max_steps=UNTIMED_STEPS + num_steps, warmdown_fraction=0.0),
        data=replace(base.data, batch_tokens=batch_tokens, micro_batch_sequences=micro_batch),
        snapshots=replace(base.snapshots, start_lr_scale=0.0),
        qat=replace(base.qat, start_lr_scale=0.0),
        compute=replace(base.compute, num_processes=processes, threads_per_process=threads),
    )


def train_ours(settings: TrainSettings, shards: list[Path]) -> tuple[list[float], list[float], list[float]]:
    """Wall clock and CPU seconds after each step, and its loss."""
    from stages.core.trainer import Hooks, StepMetrics, Trainer

    wall, cpu, losses = [], [], []

    def after_step(metrics: StepMetrics) -> None:
        wall.append(time.perf_counter())
        cpu.append(time.process_time())
        losses.append(metrics.loss)

    Trainer(settings, shards, Hooks(step=after_step)).run()
    return wall, cpu, losses


def train_plainly(
    settings: TrainSettings, shards: list[Path]
) -> tuple[list[float], list[float], list[float]]:
    """The same of the plain script."""
    import torch

    from benchmarks.plain_script import PlainTraining, batches
    from stages.core.distributed import compute_dtype
    from stages.core.loader import SequenceOrder
    from stages.core.model import GPT
    from stages.core.shards import open_shard

    torch.set_num_threads(settings.compute.threads_per_process)
    start = GPT(settings.model)
    start.init_weights(settings.seed)
    script = PlainTraining(settings.model, settings.optimizer, compute_dtype(settings.compute))
    script.model.load_state_dict(start.state_dict())
    tokens = np.concatenate([open_shard(path) for path in shards])
    length, num_steps = settings.data.sequence_length, settings.schedule.max_steps
    positions = np.arange(num_steps * settings.data.batch_sequences)
    order = SequenceOrder((len(tokens) - 1) // length, settings.seed, shuffled=True).at(positions)
    wall, cpu, losses = [], [], []
    for batch in batches(tokens, length, order, settings.data.batch_sequences):
        losses.append(script.step(batch, LR_SCALE, MOMENTUM))
        wall.append(time.perf_counter())
        cpu.append(time.process_time())
    return wall, cpu, losses


def answer_as(side: str) -> Any:
    shards = shard_paths("train")
    train = train_ours if side == "ours" else train_plainly

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        wall, cpu, losses = train(settings_for(**request), shards)
        first = UNTIMED_STEPS - 1
        return {"wall": wall[-1] - wall[first], "cpu": cpu[-1] - cpu[first], "losses": losses}

    return answer


def compare(
    team: dict[str, Worker], batch_tokens: int, micro_batch: int, num_steps: int, runs: int
) -> list[Figure]:
    request = {"batch_tokens": batch_tokens, "micro_batch": micro_batch, "num_steps": num_steps}
    trial = {**request, "num_steps": max(2, num_steps // 4), "seed": SEEDS[0]}
    team["ours"].ask(**trial)
    peer = min((side for side in team if side != "ours"), key=lambda side: team[side].ask(**trial)["wall"])
    samples = {side: Samples() for side in ("ours", peer)}
    final: dict[str, list[float]] = {side: [] for side in samples}
    for run in range(runs):
        for side in samples:
            told = team[side].ask(**request, seed=SEEDS[run % len(SEEDS)])
            samples[side].wall.append(told["wall"])
            samples[side].cpu.append(told["cpu"])
            final[side].append(statistics.fmean(told["losses"][-5:]))
    tokens = num_steps * batch_tokens
    what = f"training, {batch_tokens:,} tokens a step"
    speed = compared(
        "training", what, samples["ours"], samples[peer], GOAL_RATIO, tokens=tokens, peer_threads=peer
    )
    rates = {side: f"{tokens / sample.median:,.0f} tokens/s" for side, sample in samples.items()}
    differences = [a - b for a, b in zip(final["ours"], final[peer], strict=True)]
    spread = statistics.stdev(final["ours"]) if runs > 1 else 0.0
    gap = abs(statistics.fmean(differences))
    return [
        replace(speed, ours=rates["ours"], peer=rates[peer]),
        Figure(
            "training",
            f"loss after {(UNTIMED_STEPS + num_steps) * batch_tokens:,} tokens",
            f"{statistics.fmean(final['ours']):.4f}",
            f"{statistics.fmean(final[peer]):.4f}",
            None,
            f"apart ≤ {spread:.4f}, the spread between seeds",
            gap <= spread,
            {"ours": final["ours"], "peer": final[peer]},
        ),
    ]


def main() -> None:
    parser = parser_for("training", "Our training loop against the plain script.")
    parser.add_argument("--quick", action="store_true", help="fewer steps, to see that it works")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(answer_as(options.worker))
        return
    shard_paths("train")  # made once, not by every worker
    figures = []
    with workers("training", sides(options.quick)) as team:
        for batch_tokens, micro_batch, num_steps in SHAPES:
            figures += compare(
                team, batch_tokens, micro_batch, 3 if options.quick else num_steps, options.runs
            )
    report(figures, options.json)


if __name__ == "__main__":
    main()
