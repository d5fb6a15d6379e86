"""How work scales: one and two processes, corpora from 10 MB to 1 GB, and what checkpoints of a `record`
model keep training waiting.

    python -m benchmarks.scaling [--runs 5] [--megabytes 10 30 100 300 1000] [--plot FILE.png] [--json …]

Processes: the demo's training and sliding evaluation under torchrun, as the stages start it.
Tokenization: the stage with two threads and a ready tokenizer, each size in a process of its own, so that
its peak memory is its own. Checkpoints: the 25.2-million-parameter model trains a few steps here with a
snapshot and a checkpoint at each, and what held the loop is set against `record`'s 600 s, with its snapshots
and a checkpoint every 30 s.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, Figure, parser_for, report, timed
from benchmarks.tokenization import run_ours, spec_for, write_corpus
from benchmarks.training import UNTIMED_STEPS, settings_for, train_ours
from benchmarks.workers import demo_tokens, our_environment, shard_paths
from presets import load_preset
from schemas.compute_settings import ComputeSettings
from schemas.runtime import RunOptions
from schemas.scoring_settings import ScoringSettings
from schemas.tokenize_corpus import SotuCorpus, TokenizerSpec, TokenizeSpec
from stages.processes.launch import run_ranks
from stages.store.machine import resolve_precision
from stages.store.workspace import no_progress

PEAK_LIMIT_BYTES = 1_000_000_000
SLOPE = (0.9, 1.1)
GOAL_SHARE = 0.02
REFERENCE_STEPS = 4_071
LAYOUTS = ((1, 1), (1, 2), (2, 1))  # processes, threads of each
BATCH = (16_384, 32, 6)  # tokens a step, sequences in a forward pass, timed steps
EVALUATED_WINDOWS, LENGTH, STRIDE = 512, 256, 64


def processes(runs: int) -> list[Figure]:
    """Training and evaluation with the two cores split in three ways, alternating."""
    shard_paths("train")  # made once, not by every process
    rates: dict[tuple[str, tuple[int, int]], list[float]] = {}
    for _ in range(runs):
        for work in ("train", "evaluate"):
            for layout in LAYOUTS:
                rates.setdefault((work, layout), []).append(_under_torchrun(work, *layout))
    figures = []
    for work, unit in (("train", "tokens/s"), ("evaluate", "targets/s")):
        alone = statistics.median(rates[work, LAYOUTS[0]])
        for layout in LAYOUTS:
            rate = statistics.median(rates[work, layout])
            what = (
                f"{'training' if work == 'train' else 'sliding evaluation'}, {layout[0]} "
                f"process(es) × {layout[1]} thread(s)"
            )
            figures.append(
                Figure(
                    "scaling",
                    what,
                    f"{rate:,.0f} {unit}",
                    f"one core: {alone:,.0f}",
                    rate / alone,
                    details={"rates": rates[work, layout]},
                )
            )
    return figures


def _under_torchrun(work: str, num_processes: int, threads: int) -> float:
    with tempfile.TemporaryDirectory() as name:
        told = Path(name) / "told.json"
        compute = resolve_precision(ComputeSettings(num_processes=num_processes, threads_per_process=threads))
        program = [
            "-m",
            "benchmarks.scaling",
            "--rank",
            work,
            "--told",
            str(told),
            "--layout",
            str(num_processes),
            str(threads),
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        run_ranks(program, Path(name), compute, no_progress, None, env=environment, cwd=ROOT)
        return float(json.loads(told.read_text(encoding="utf-8")))


def one_rank(work: str, told: Path, num_processes: int, threads: int) -> None:
    """In a process of torchrun: work per second, written by the first one."""
    import torch.distributed as dist

    if work == "train":
        batch_tokens, micro_batch, num_steps = BATCH
        settings = settings_for(
            batch_tokens, micro_batch // num_processes, num_steps, 1337, num_processes, threads
        )
        wall, _, _ = train_ours(settings, shard_paths("train"))
        # Only the first process hears of steps.
        rate = num_steps * batch_tokens / (wall[-1] - wall[UNTIMED_STEPS - 1]) if wall else 0.0
    else:
        rate = _evaluate(
            resolve_precision(ComputeSettings(num_processes=num_processes, threads_per_process=threads))
        )
    if int(os.environ.get("RANK", "0")) == 0:
        told.write_text(json.dumps(rate), encoding="utf-8")
    if dist.is_initialized():
        dist.destroy_process_group()


def _evaluate(compute: ComputeSettings) -> float:
    from stages.core.bits_per_byte import load_token_bytes
    from stages.core.distributed import compute_dtype, join_processes
    from stages.core.loader import TokenStream
    from stages.core.model import GPT
    from stages.core.scoring import score

    class Beginning(TokenStream):
        """The first tokens only."""

        def __len__(self) -> int:
            return LENGTH + (EVALUATED_WINDOWS - 1) * STRIDE + 1

    join_processes(compute)
    store, tokenized = demo_tokens()
    table, stream = load_token_bytes(store.root / tokenized.tokenizer.path), Beginning(shard_paths("val"))
    model = GPT(load_preset("demo").train.model)
    model.init_weights(0)
    settings = ScoringSettings(LENGTH, STRIDE, load_preset("demo").evaluate.scoring.batch_tokens)
    score(model, stream, table, replace(settings, stride=LENGTH), LENGTH, compute_dtype(compute))  # warm-up
    began = time.perf_counter()
    sums = score(model, stream, table, settings, STRIDE, compute_dtype(compute))
    return sums.num_targets / (time.perf_counter() - began)


def tokenization(megabytes: list[int], plot: Path | None) -> list[Figure]:
    """Seconds and peak memory of the stage for each size; the plot where a path is given."""
    from stages.corpora import documents, locate
    from stages.tokenization.tokenizer import train_tokenizer

    measured: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="fairway-bench-") as name:
        folder = Path(name)
        sotu = TokenizeSpec(corpus=SotuCorpus())
        model = folder / "tokenizer.model"
        model.write_bytes(train_tokenizer(TokenizerSpec(), documents(sotu.corpus, locate(sotu))))
        for size in megabytes:
            corpus = folder / "corpus.jsonl"
            write_corpus(corpus, size * 1_000_000)
            command = [sys.executable, "-m", "benchmarks.scaling", "--tokenize", str(corpus), str(model)]
            done = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            measured.append(json.loads(done.stdout.splitlines()[-1]))
            corpus.unlink()
    sizes, seconds = [row["text_bytes"] for row in measured], [row["seconds"] for row in measured]
    slope = _slope(sizes, seconds)
    peaks = [row["peak_bytes"] for row in measured]
    if plot is not None:
        _draw(sizes, seconds, peaks, plot)
    ends = ((sizes[0], seconds[0]), (sizes[-1], seconds[-1]))
    rates = ", ".join(f"{size / time_ / 1e6:.0f} MB/s at {size / 1e6:.0f} MB" for size, time_ in ends)
    met = SLOPE[0] <= slope <= SLOPE[1]
    linear = Figure(
        "scaling",
        "tokenization time ~ sizeᵏ",
        f"k = {slope:.2f}",
        rates,
        None,
        "k = 0.9 to 1.1",
        met,
        {"measured": measured},
    )
    memory = Figure(
        "scaling", "tokenization, peak memory", (f"{max(peaks) / 1e6:.0f} "
                                                "MB"), (f"{peaks[0] / 1e6:.0f} MB for the "
                                                       "smallest"), None, "< 1 GB",
        max(peaks) < PEAK_LIMIT_BYTES,
    )  # fmt: skip
    return [linear, memory]


def _tokenize_one(corpus: Path, model: Path) -> None:
    import resource

    with tempfile.TemporaryDirectory(dir=corpus.parent) as folder:
        (seconds, _), _ = timed(
            lambda: run_ours(spec_for(corpus, TokenizerSpec(model_path=str(model))), Path(folder), 2)
        )
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"text_bytes": corpus.stat().st_size, "seconds": seconds, "peak_bytes": peak}))


def _slope(sizes: list[float], seconds: list[float]) -> float:
    """Exponent k of seconds ~ sizeᵏ, by least squares over the sizes from 100 MB (all, where there are
    fewer than two of those).
    """
    points = [(math.log(x), math.log(y)) for x, y in zip(sizes, seconds, strict=True)]
    large = [point for point, x in zip(points, sizes, strict=True) if x >= 9e7]
    return statistics.linear_regression(*zip(*(large if len(large) > 1 else points), strict=True)).slope


def _draw(sizes: list[float], seconds: list[float], peaks: list[float], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    megabytes = [size / 1e6 for size in sizes]
    axes.loglog(megabytes, seconds, "o-", label="seconds (left)")
    axes.loglog(
        megabytes,
        [seconds[-1] * size / sizes[-1] for size in sizes],
        ":",
        color="gray",
        label="proportional to the last",
    )
    axes.set_xlabel("corpus, MB")
    axes.set_ylabel("seconds")
    memory = axes.twinx()
    memory.plot(
        megabytes, [peak / 1e6 for peak in peaks], "s--", color="tab:orange", label="peak memory, MB (right)"
    )
    memory.set_ylim(0, PEAK_LIMIT_BYTES / 1e6)
    memory.set_ylabel("MB")
    figure.legend(loc="outside upper center", ncols=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def checkpoints(num_steps: int) -> Figure:
    """What one snapshot and one checkpoint keep the loop of the `record` model waiting, on this CPU,
    times how many a run writes.
    """
    from stages.core.trainer import Hooks, Trainer
    from stages.training.files import TrainingFiles

    record = load_preset("record").train
    settings = replace(
        record,
        # Every step is below the first snapshot's learning rate but the first.
        schedule=replace(
            record.schedule,
            max_steps=num_steps,
            max_seconds=None,
            reserve_seconds=0.0,
            warmdown_fraction=1.0,
            compile_warmup_steps=0,
        ),
        data=replace(record.data, batch_tokens=512, sequence_length=512, micro_batch_sequences=1),
        snapshots=replace(record.snapshots, start_lr_scale=1.0, every_steps=1),
        qat=replace(record.qat, start_lr_scale=0.0),
        compute=resolve_precision(ComputeSettings(threads_per_process=2)),
    )
    counts = {"snapshot": 0, "checkpoint": 0}
    with tempfile.TemporaryDirectory(prefix="fairway-bench-") as name:
        files = TrainingFiles(Path(name), 1.0, 2)

        def take(kind: str, action: Any, *arguments: Any) -> None:
            counts[kind] += 1
            action(*arguments)

        hooks = Hooks(
            snapshot=lambda *given: take("snapshot", files.add_snapshot, *given),
            checkpoint_due=files.checkpoint_due,
            checkpoint=lambda state: take("checkpoint", files.add_checkpoint, state),
        )
        trained = Trainer(settings, shard_paths("train"), hooks).run()
        files.close()
    each = {kind: trained.hook_seconds[kind] / max(count, 1) for kind, count in counts.items()}
    assert record.schedule.max_seconds is not None
    assert record.snapshots.every_steps is not None
    assert record.schedule.warmdown_fraction is not None
    late_steps = REFERENCE_STEPS * record.schedule.warmdown_fraction * record.snapshots.start_lr_scale
    run = {
        "snapshot": late_steps / record.snapshots.every_steps,
        "checkpoint": record.schedule.max_seconds / RunOptions().checkpoint_every_seconds,
    }
    share = sum(run[kind] * each[kind] for kind in run) / record.schedule.max_seconds
    return Figure(
        "scaling",
        "snapshots and checkpoints, share of a record run",
        f"{share:.2%}",
        f"{1000 * each['snapshot']:.0f} ms a snapshot, {1000 * each['checkpoint']:.0f} ms a checkpoint",
        None,
        "≤ 2 %",
        counts["checkpoint"] > 0 and share <= GOAL_SHARE,
        {"seconds_each": each, "measured": counts, "in_a_run": run},
    )


def main() -> None:
    parser = parser_for("scaling", "Processes, corpus sizes, checkpoints.")
    parser.add_argument(
        "--megabytes",
        type=int,
        nargs="+",
        default=[10, 30, 100, 300, 1000],
        help="corpora (default: 10 to 1000)",
    )
    parser.add_argument("--plot", type=Path, help="draw tokenization's time and memory here")
    parser.add_argument(
        "--steps", type=int, default=12, help="steps of the record model (default: %(default)s)"
    )
    parser.add_argument(
        "--checkpoints", action="store_true", help="only what snapshots and checkpoints cost, in this process"
    )
    parser.add_argument("--tokenize", type=Path, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--rank", choices=("train", "evaluate"), help=argparse.SUPPRESS)
    parser.add_argument("--told", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--layout", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tokenize:
        _tokenize_one(*options.tokenize)
    elif options.rank:
        one_rank(options.rank, options.told, *options.layout)
    elif options.checkpoints:
        report([checkpoints(options.steps)], options.json)
    else:
        report([*processes(options.runs), *tokenization(options.megabytes, options.plot)], options.json)
        # In a process with the environment of a stage's: how threads wait, memory that is kept.
        command = [sys.executable, "-m", "benchmarks.scaling", "--checkpoints", "--steps", str(options.steps)]
        command += ["--json", str(options.json)] if options.json else []
        subprocess.run(
            command, cwd=ROOT, env={**os.environ, **our_environment(), "PYTHONPATH": str(ROOT)}, check=True
        )


if __name__ == "__main__":
    main()
