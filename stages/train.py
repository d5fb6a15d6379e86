"""Train: token shards -> snapshots, last iterate, metrics.

By hand: python -m stages train --spec spec.json --input tokenized=…/record.json

The work happens in torchrun's processes (`stages.training.worker`), also when there is only one.
"""

import dataclasses

from schemas.errors import SpecError
from schemas.tokenize_corpus import TokenizedCorpus
from schemas.train import Snapshot, TrainingResult, TrainSpec
from stages.processes.launch import launch_module
from stages.store.workspace import Workspace


def train(spec: TrainSpec, tokenized: TokenizedCorpus, work: Workspace) -> TrainingResult:
    """Train `spec` on the training split. Goes on from the last sound checkpoint in the output folder.

    Raises SpecError when tokens and model do not fit together, StageError when the loss diverges.
    """
    _check(spec, tokenized)
    job = {
        "settings": dataclasses.asdict(spec),
        "shards": [str(work.read(ref)) for ref in tokenized.train_shards],
        "folder": str(work.out_dir),
        "runtime": work.runtime.model_dump(mode="json"),
    }
    result = launch_module(
        "stages.training.worker",
        job,
        work.out_dir,
        spec.compute,
        work.progress,
        work.runtime.stage_timeout_seconds,
    )
    snapshots = [
        Snapshot(weights=work.ref(work.out_dir / "snapshots" / item.pop("file")), **item)
        for item in result.pop("snapshots")
    ]
    if ema := result.pop("ema"):
        ema = Snapshot(weights=work.ref(work.out_dir / "ema.safetensors"), **ema)
    last = Snapshot(weights=work.ref(work.out_dir / "last.safetensors"), **result.pop("last"))
    return TrainingResult.model_validate(
        {
            **result,
            "model": spec.model,
            "last": last,
            "ema": ema,
            "snapshots": snapshots,
            "metrics": work.ref(work.out_dir / "metrics.parquet"),
        }
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
