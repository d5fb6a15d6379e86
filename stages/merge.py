"""Merge: snapshots -> one model, scored before and after.

By hand: python -m stages merge --spec spec.json --input trained=…/record.json --input tokenized=…/record.json
"""

import dataclasses
import math
from typing import Any

from schemas.errors import SpecError, StageError
from schemas.evaluate import Score
from schemas.merge import MergedModel, MergeSpec
from schemas.tokenize_corpus import TokenizedCorpus
from schemas.train import Snapshot, TrainingResult
from stages.processes.launch import launch_module
from stages.store.workspace import Workspace


def merge(
    spec: MergeSpec, trained: TrainingResult, tokenized: TokenizedCorpus, work: Workspace
) -> MergedModel:
    """Average the snapshots of the window in float64 and score last iterate and merged model
    (non-overlapping windows).

    Raises SpecError when no snapshot lies in the window, StageError when snapshots do not fit together.
    """
    from safetensors.torch import load_file, save

    from stages.core.averaging import average_states, averaging_weights
    from stages.processes.threads import threads_of

    chosen = _chosen(spec, trained)
    states = (load_file(work.read(item.weights)) for item in chosen)
    with threads_of(spec.compute.threads_per_process):
        try:
            merged = average_states(states, averaging_weights(len(chosen), spec.averaging))
        except ValueError as error:
            raise StageError(f"the snapshots cannot be averaged: {error}") from error
        distance_from_last = _relative_distance(merged, load_file(work.read(trained.last.weights)))
    path = work.out_dir / "merged.safetensors"
    path.write_bytes(save(merged))  # save_file has an error of its own for a full disk
    weights = {"last": str(work.read(trained.last.weights)), "merged": str(path)}
    job = {
        "model": dataclasses.asdict(trained.model),
        "weights": weights,
        "shards": [str(work.read(ref)) for ref in tokenized.val_shards],
        "tokenizer": str(work.read(tokenized.tokenizer)),
        "scoring": dataclasses.asdict(spec.scoring),
        "compute": dataclasses.asdict(spec.compute),
    }
    scores = launch_module(
        "stages.scoring.worker",
        job,
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
        last=Score(**scores["last"]),
        score=Score(**scores["merged"]),
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
