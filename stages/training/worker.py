"""One process of a training run: python -m stages.training.worker JOB.json RESULT.json

The key of the training covers what this module imports. So scores of held-out text, which change no weight,
have a worker of their own (`stages.training.scoring_worker`), which hands its trainer to `main`.
"""

import logging
import platform
import resource
import statistics
import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

from schemas.errors import StageError, StoppedError
from schemas.train import TrainingFigures, TrainTimings
from schemas.train_settings import TrainSettings
from stages.core.distributed import join_processes, leave_processes, machine_in_words
from stages.core.schedule import Clock, progress_at
from stages.core.trainer import (
    DivergedError,
    Hooks,
    StepMetrics,
    TrainedModel,
    Trainer,
    TrainState,
    step_line,
)
from stages.processes.launch import job_of, say_progress
from stages.training.account import account_of_changes, account_of_groups, account_of_rows
from stages.training.files import TrainingFiles, write_safetensors
from stages.training.job import BrokenRuleError, TrainingJob, TrainingOutcome, WrittenSnapshot

log = logging.getLogger("stages.train")

_WORDS_BYTES = 512

MakeTrainer = Callable[[TrainingJob, TrainingFiles, Hooks, TrainState | None], Trainer]
"""Makes the trainer of a job, which goes on from the state if there is one. Raises ValueError where the job's
settings do not fit this machine or the shards.
"""


def plain_trainer(job: TrainingJob, files: TrainingFiles, hooks: Hooks, resume: TrainState | None) -> Trainer:
    return Trainer(job.settings, list(job.shards), hooks, resume)


def main(make: MakeTrainer = plain_trainer) -> None:
    """Train the job of this process by the trainer of `make`, and leave its outcome."""
    with job_of(TrainingJob) as (job, leave):
        _train(job, leave, make)
    if dist.is_initialized():
        dist.barrier()
    leave_processes()


def _train(job: TrainingJob, leave: Callable[[TrainingOutcome], None], make: MakeTrainer) -> None:
    settings, runtime = job.settings, job.runtime
    files = TrainingFiles(job.folder, runtime.checkpoint_every_seconds, runtime.keep_checkpoints)
    seconds = runtime.group_timeout_seconds
    join_processes(settings.compute, None if seconds is None else timedelta(seconds=seconds))
    _check_machines(settings)
    resume = _resume_everywhere(files, settings)
    hooks = Hooks(
        _Narrator(files, settings, runtime.log_every_seconds),
        files.add_snapshot,
        files.checkpoint_due,
        files.add_checkpoint,
    )
    try:
        trainer = make(job, files, hooks, resume)
    except ValueError as error:
        raise StageError(str(error)) from error
    del resume
    if trainer.rank == 0:
        _announce(trainer)
    try:
        trained = trainer.run()
    except BrokenRuleError as error:
        raise _stopped(job, files, trainer, error) from error
    except DivergedError as error:
        files.close()
        checkpoints = sorted(path.stem for path in (files.folder / "checkpoints").glob("*.json"))
        last_good = (
            f"the last good checkpoint is {checkpoints[-1]}"
            if checkpoints
            else "no checkpoint had been written yet"
        )
        raise StageError(
            f"{error}; {last_good}. Lower the learning rates or train.optimizer.grad_clip_norm"
        ) from error
    if trainer.rank == 0:
        files.add_checkpoint(trainer.state())
        leave(_finish(job, files, trainer, trained))


def _stopped(job: TrainingJob, files: TrainingFiles, trainer: Trainer, why: BrokenRuleError) -> StoppedError:
    """The error that ends a training by a rule; its metrics and a checkpoint are written before.

    The other processes wait for the first: torchrun ends them all once one has ended.
    """
    if trainer.rank == 0:
        files.add_checkpoint(trainer.state())
        files.close()
        files.write_parquet(job.scored_text())
    if trainer.world > 1:
        dist.barrier()
    return StoppedError(
        f"training was stopped {why}. Its metrics stay; without the rule the same command goes on from there"
    )


def _resume_everywhere(files: TrainingFiles, settings: TrainSettings) -> TrainState | None:
    """The first process picks the checkpoint, so that all agree; the others then read the same one."""
    rank, world, _ = join_processes(settings.compute)
    state = files.resume() if rank == 0 else None
    if world == 1:
        return state
    step = torch.tensor([state.steps if state else 0])
    dist.broadcast(step, src=0)
    if rank == 0 or int(step) == 0:
        return state
    return files.read_checkpoint(int(step))


def _check_machines(settings: TrainSettings) -> None:
    """Raise StageError on a machine of another kind than the first: the result's key names only one kind."""
    if settings.compute.num_nodes == 1:
        return
    here = machine_in_words(settings.compute.device)
    words = torch.zeros(_WORDS_BYTES, dtype=torch.uint8)
    words[: len(here.encode())] = torch.frombuffer(bytearray(here.encode()), dtype=torch.uint8)
    dist.broadcast(words, src=0)
    first = bytes(words.tolist()).rstrip(b"\0").decode()
    if here != first:
        raise StageError(
            f"train.compute.num_nodes = {settings.compute.num_nodes}: {platform.node()} is {here}, the first "
            f"machine {first}; train on machines of one kind"
        )


class _Narrator:
    """Step hook of the first process: metrics to the file, a log line now and then, progress for the bar."""

    def __init__(self, files: TrainingFiles, settings: TrainSettings, every_seconds: float) -> None:
        self._files, self._settings, self._every = files, settings, every_seconds
        self._last_line = self._last_progress = float("-inf")
        self._qat_was_on = False

    def __call__(self, metrics: StepMetrics) -> None:
        self._files.add_metrics(metrics)
        now = time.monotonic()
        schedule = self._settings.schedule
        share = progress_at(Clock(metrics.step, metrics.seconds), schedule)
        if metrics.qat_on and not self._qat_was_on:
            log.info("late QAT is on from step %d (lr scale %.3f)", metrics.step, metrics.lr_scale)
            self._qat_was_on = True
        if now - self._last_progress >= 0.5 or share >= 1:
            self._last_progress = now
            say_progress(round(100 * share, 1), 100, "%")
        if now - self._last_line >= self._every or share >= 1:
            self._last_line = now
            log.info("%s", step_line(metrics, schedule))


def _announce(trainer: Trainer) -> None:
    count = sum(param.numel() for param in trainer.model.parameters())
    log.info("%s parameters on %d × %s", f"{count:,}", trainer.world, trainer.device.type)
    if trainer.model.qat_grid:
        log.info("late QAT will round to the grid of %s", trainer.model.qat_grid)
    for group in trainer.groups:
        log.info(
            "group %s: %d tensors, optimizer %s, lr %g, weight decay %g",
            group.name,
            len(group.names),
            group.optimizer,
            group.lr,
            group.weight_decay,
        )


def _finish(
    job: TrainingJob, files: TrainingFiles, trainer: Trainer, trained: TrainedModel
) -> TrainingOutcome:
    """Write the last iterate and the metrics; all that the record will say."""
    settings = job.settings
    final = trainer.weights()
    write_safetensors(files.folder / "last.safetensors", final)
    if trained.ema is not None:
        write_safetensors(files.folder / "ema.safetensors", trained.ema)
    files.close()
    rows = files.metrics()
    files.write_parquet(job.scored_text())
    groups = account_of_groups(trainer, [row["lr_scale"] for row in rows])
    last = WrittenSnapshot(
        file="last.safetensors",
        step=trained.steps,
        lr_scale=trained.last_lr_scale,
        qat_on=trained.last_qat_on,
    )
    ema = None if trained.ema is None else last.derive(file="ema.safetensors")
    snapshots = tuple(
        WrittenSnapshot(
            file=f"snapshots/{item['file']}",
            step=item["step"],
            lr_scale=item["lr_scale"],
            qat_on=item["qat_on"],
        )
        for item in files.snapshots
    )
    figures = TrainingFigures(
        num_parameters=sum(tensor.numel() for tensor in final.values()),
        steps=trained.steps,
        tokens_seen=trained.steps * settings.data.batch_tokens,
        epochs=trained.steps * settings.data.batch_sequences / trained.sequences_in_split,
        document_rows=account_of_rows(trainer),
        stopped_by=trained.stopped_by,
        final_train_loss=statistics.fmean(row["loss"] for row in rows[-max(1, len(rows) // 10) :]),
        qat_steps=trained.qat_steps,
        qat_grid=trained.model.qat_grid,
        groups=groups,
        changes=account_of_changes(trainer, groups, trained.initial, final),
        timings=_timings(files, settings, trained, [row["seconds"] for row in rows]),
    )
    return TrainingOutcome(last=last, ema=ema, snapshots=snapshots, figures=figures)


def _timings(
    files: TrainingFiles, settings: TrainSettings, trained: TrainedModel, ends: list[float]
) -> TrainTimings:
    """`ends`: the clock in seconds at the end of each step."""
    steps_ms = [1000 * (after - before) for before, after in zip(ends, ends[1:], strict=False)]
    peak = (
        torch.cuda.max_memory_allocated()
        if settings.compute.device == "cuda"
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    return TrainTimings(
        training_seconds=trained.seconds,
        warmup_seconds=trained.warmup_seconds,
        median_step_milliseconds=statistics.median(steps_ms) if steps_ms else 1000 * trained.seconds,
        tokens_per_second=trained.steps * settings.data.batch_tokens / max(trained.seconds, 1e-9),
        snapshot_seconds=trained.hook_seconds["snapshot"],
        checkpoint_seconds=trained.hook_seconds["checkpoint"],
        scoring_seconds=trained.hook_seconds.get("scoring", 0.0),
        resumed_from_steps=tuple(files.resumed_from),
        peak_memory_bytes=peak,
    )


if __name__ == "__main__":
    main()
