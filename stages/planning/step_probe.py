"""A few real steps of training and a few batches of scoring: python -m stages.planning.step_probe JOB RESULT

Loss and text do not matter for speed, so the tokens are random. The first step and the first batch do not
count.
"""

import os
import resource
import time
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist

from schemas.errors import StageError
from schemas.scoring_settings import ScoringSettings
from schemas.train_settings import TrainSettings
from stages.core.bits_per_byte import TokenBytes
from stages.core.distributed import compute_dtype, leave_processes
from stages.core.loader import TokenStream
from stages.core.model import GPT
from stages.core.scoring import score
from stages.core.trainer import Hooks, Trainer
from stages.planning.counts import long_context
from stages.planning.job import StepProbe, StepProbeJob
from stages.processes.launch import job_of

FEW_STEPS = 3
_ENOUGH_SECONDS = 4.0
_MOST_STEPS = 60
_BATCHES = 3


class _FirstTokens(TokenStream):
    """The first `count` tokens of another stream."""

    def __init__(self, stream: TokenStream, count: int) -> None:
        self._arrays, self._starts = stream._arrays, stream._starts
        self._count = min(count, len(stream))

    def __len__(self) -> int:
        return self._count


def main() -> None:
    with job_of(StepProbeJob) as (job, leave):
        measured = measure_steps(job)
        if os.environ.get("RANK", "0") == "0":
            leave(measured)
    if dist.is_initialized():
        dist.barrier()
    leave_processes()


def measure_steps(job: StepProbeJob) -> StepProbe:
    """Every process calls this; what the first one returns counts. Raises StageError as training does."""
    began = time.perf_counter()
    try:
        trainer, steps, step_seconds, warmup_seconds = _train(job)
    except ValueError as error:  # the settings do not fit this machine
        raise StageError(str(error)) from error
    peak = (
        torch.cuda.max_memory_allocated()
        if job.train.compute.device == "cuda"
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    scoring = replace(job.scoring, windows="stream")
    long, reach = long_context(scoring), scoring.attention_window or None
    return StepProbe(
        inside_seconds=time.perf_counter() - began,
        warmup_seconds=warmup_seconds,
        steps=steps,
        step_seconds=step_seconds,
        peak_bytes=peak,
        window_seconds=_score(trainer, job, scoring, scoring.sequence_length),
        sliding_window_seconds=_score(trainer, job, long, long.stride, reach) if long else None,
    )


def _train(job: StepProbeJob) -> tuple[Trainer, int, float, float]:
    """The trainer, the number of steps that count, the mean seconds of one, and those of the warm-up."""
    trainer, seconds, warmup = _run(job, 1 + FEW_STEPS)
    steps = FEW_STEPS
    more = min(_MOST_STEPS, int(_ENOUGH_SECONDS / seconds))
    if more > 2 * FEW_STEPS:
        trainer, seconds, _ = _run(job, 1 + more)
        steps = more
    return trainer, steps, seconds, warmup


def _run(job: StepProbeJob, steps: int) -> tuple[Trainer, float, float]:
    """The schedule in so many steps, so that late QAT and loops have their share of them."""
    ends: list[float] = []
    schedule = replace(job.train.schedule, max_steps=steps, max_seconds=None)
    snapshots = replace(job.train.snapshots, start_lr_scale=0.0)
    settings: TrainSettings = replace(job.train, schedule=schedule, snapshots=snapshots)
    trainer = Trainer(settings, list(job.shards), Hooks(step=lambda row: ends.append(row.seconds)))
    trained = trainer.run()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()
    if trainer.rank > 0:  # only the first process hears of steps
        return trainer, trained.seconds / steps, trained.warmup_seconds
    return trainer, (trained.seconds - ends[0]) / (steps - 1), trained.warmup_seconds


def _score(
    trainer: Trainer, job: StepProbeJob, scoring: ScoringSettings, stride: int, reach: int | None = None
) -> float:
    """Seconds of a window, `stride` targets of which are scored."""
    times, done = [time.perf_counter()], [0.0]

    def progress(count: float, total: float, unit: str) -> None:
        times.append(time.perf_counter())
        done.append(count)

    windows = _BATCHES * trainer.world * max(1, scoring.batch_tokens // scoring.sequence_length)
    tokens = _FirstTokens(TokenStream(list(job.shards)), scoring.sequence_length + windows * stride)
    model, dtype = trainer.model, compute_dtype(job.train.compute)
    score(model, tokens, _no_bytes(model), scoring, stride, dtype, progress, reach=reach)
    first = 1 if len(times) > 2 else 0
    return (times[-1] - times[first]) / (done[-1] - done[first])


def _no_bytes(model: GPT) -> TokenBytes:
    """A table in which each piece stands for one byte: speed does not depend on it."""
    pieces = model.settings.vocab_size
    none = np.zeros(pieces, np.bool_)
    return TokenBytes(np.ones(pieces, np.int64), none, none)


if __name__ == "__main__":
    main()
