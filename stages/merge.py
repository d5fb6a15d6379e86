"""Merge: snapshots -> one model, scored before and after.

By hand: python -m stages merge --spec spec.json --input trained=…/record.json --input tokenized=…/record.json
"""

import math
from typing import Any

from schemas.errors import SpecError, StageError
from schemas.merge import MergedModel, MergeSpec
from schemas.tokenize_corpus import TokenizedCorpus
from schemas.train import Snapshot, TrainingResult
from stages.processes.launch import launch_module
from stages.scoring.job import ScoredWeights, ScoringJob
from stages.store.workspace import Workspace


def merge(
    spec: MergeSpec, trained: TrainingResult, tokenized: TokenizedCorpus, work: Workspace
) -> MergedModel:
    """Average the snapshots of the window in float64 and score last iterate and merged model
    (non-overlapping windows).

    Raises SpecError when no snapshot lies in the window, StageError when snapshots do not fit together.
    """
    from safetensors.torch import save

    chosen = _chosen(spec, trained)
    averaged, distance_from_last = _average(spec, chosen, trained.last, work)
    path = work.out_dir / "merged.safetensors"
    path.write_bytes(save(averaged))  # save_file has an error of its own for a full disk
    scored = launch_module(
        "stages.scoring.worker",
        ScoringJob(
            model=trained.model,
            weights={"last": work.read(trained.last.weights), "merged": path},
            shards=tuple(work.read(ref) for ref in tokenized.val_shards),
            tokenizer=work.read(tokenized.tokenizer),
            scoring=spec.scoring,
            compute=spec.compute,
        ),
        ScoredWeights,
        work.out_dir,
        spec.compute,
        work.progress,
        work.runtime.stage_timeout_seconds,
    )
    return MergedModel(
        model=trained.model,
        weights=work.ref(path),
        method=spec.averaging.method,
        steps=tuple(item.step for item in chosen),
        lr_scales=tuple(item.lr_scale for item in chosen),
        num_with_qat=sum(item.qat_on for item in chosen),
        distance_from_last=distance_from_last,
        last=scored.scores["last"],
        score=scored.scores["merged"],
    )


def _chosen(spec: MergeSpec, trained: TrainingResult) -> list[Snapshot]:
    """The weights that the merged model is the mean of. Raises SpecError where training left none of them."""
    from stages.core.averaging import averages_snapshots, choose_snapshots

    if averages_snapshots(spec.averaging):
        scales = [item.lr_scale for item in trained.snapshots]
        chosen = [trained.snapshots[i] for i in choose_snapshots(scales, spec.averaging)]
        if not chosen:
            raise SpecError(_nothing_to_average(spec, trained))
        return chosen
    if spec.averaging.method == "last":
        return [trained.last]
    if trained.ema is None:
        raise SpecError(
            "merge.averaging.method = ema_of_steps: training kept no such mean; set "
            "train.snapshots.ema_horizon, which trains again"
        )
    return [trained.ema]


def _average(
    spec: MergeSpec, chosen: list[Snapshot], last: Snapshot, work: Workspace
) -> tuple[dict[str, Any], float]:
    """Tensors by name, float32 on the CPU, and their distance from `last` as MergedModel tells it.

    Raises StageError when the snapshots do not fit together.
    """
    from safetensors.torch import load_file

    from stages.core.averaging import average_states, averaging_weights
    from stages.processes.threads import threads_of

    states = (load_file(work.read(item.weights)) for item in chosen)
    with threads_of(spec.compute.threads_per_process):
        try:
            averaged = average_states(states, averaging_weights(len(chosen), spec.averaging))
        except ValueError as error:
            raise StageError(f"the snapshots cannot be averaged: {error}") from error
        return averaged, _relative_distance(averaged, load_file(work.read(last.weights)))


def _relative_distance(state: dict[str, Any], origin: dict[str, Any]) -> float:
    """Root mean square of `state` − `origin` over that of `origin`, all tensors together."""
    apart = sum(float((tensor - origin[name]).double().square().sum()) for name, tensor in state.items())
    whole = sum(float(tensor.double().square().sum()) for tensor in origin.values())
    return math.sqrt(apart / whole) if whole else 0.0


def _nothing_to_average(spec: MergeSpec, trained: TrainingResult) -> str:
    scales = [item.lr_scale for item in trained.snapshots]
    there = (
        f"training left {len(scales)} snapshots at lr scales {min(scales):.3f} to {max(scales):.3f}"
        if scales
        else "training left no snapshots"
    )
    return (
        f"merge.averaging.start_lr_scale = {spec.averaging.start_lr_scale}: no snapshot was taken below it; "
        f"{there}. Widen the window, write more snapshots (train.snapshots) or set "
        "merge.averaging.method=last"
    )
