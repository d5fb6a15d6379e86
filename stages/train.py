"""Train: token shards -> snapshots, last iterate, metrics.

    python -m stages train --spec spec.json --input tokenized=…/record.json

The work happens in processes of its own (`stages.training.worker`). torchrun starts several on one machine,
`stages.processes.hosts` those of several machines. Where held-out text is scored,
`stages.training.scoring_worker` takes the worker's place; it changes neither key nor weights.
"""

from schemas.errors import SpecError
from schemas.tokenize_corpus import TokenizedCorpus
from schemas.train import Snapshot, TrainingResult, TrainSpec
from stages.processes.hosts import runner_for
from stages.processes.launch import launch_module
from stages.store.workspace import Workspace
from stages.training.job import TrainingJob, TrainingOutcome, WrittenSnapshot


def train(spec: TrainSpec, tokenized: TokenizedCorpus, work: Workspace) -> TrainingResult:
    """Train `spec` on the training split. Goes on from the last sound checkpoint in the output folder.

    Raises SpecError when tokens and model do not fit together, StageError when the loss diverges,
    StoppedError when a rule of `work.runtime` ends it.
    """
    _check(spec, tokenized)
    scores = work.runtime.held_out is not None
    job = TrainingJob(
        settings=spec,
        shards=tuple(work.read(ref) for ref in tokenized.train_shards),
        folder=work.out_dir,
        runtime=work.runtime,
    )
    if scores:
        job = job.derive(
            val_shards=tuple(work.read(ref) for ref in tokenized.val_shards),
            tokenizer=work.read(tokenized.tokenizer),
        )
    trained = launch_module(
        "stages.training.scoring_worker" if scores else "stages.training.worker",
        job,
        TrainingOutcome,
        work.out_dir,
        spec.compute,
        work.progress,
        work.runtime.stage_timeout_seconds,
        runner_for(spec.compute, work.runtime),
    )
    return TrainingResult(
        **dict(trained.figures),
        model=spec.model,
        last=_in_the_store(trained.last, work),
        ema=_in_the_store(trained.ema, work) if trained.ema else None,
        snapshots=tuple(_in_the_store(written, work) for written in trained.snapshots),
        metrics=work.ref(work.out_dir / "metrics.parquet"),
    )


def _in_the_store(written: WrittenSnapshot, work: Workspace) -> Snapshot:
    return Snapshot(
        step=written.step,
        lr_scale=written.lr_scale,
        qat_on=written.qat_on,
        weights=work.ref(work.out_dir / written.file),
    )


def _check(spec: TrainSpec, tokenized: TokenizedCorpus) -> None:
    if tokenized.vocab_size != spec.model.vocab_size:
        raise SpecError(
            f"train.model.vocab_size = {spec.model.vocab_size}: the tokenizer has "
            f"{tokenized.vocab_size} pieces; set it to that"
        )
    needed = spec.data.sequence_length + 1
    for name, split in (("training", tokenized.train), ("validation", tokenized.val)):
        if split.num_tokens < needed:
            raise SpecError(
                f"train.data.sequence_length = {spec.data.sequence_length}: the {name} split has only "
                f"{split.num_tokens} tokens, fewer than one sequence ({needed}). Use more text or a shorter "
                "sequence"
            )
