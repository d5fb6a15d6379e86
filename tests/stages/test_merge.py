"""Merging: errors before any process starts.

The whole stage runs in tests/flows and below on the smoke model.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from presets import load_preset
from schemas.averaging_settings import AveragingSettings
from schemas.errors import SpecError, StageError
from schemas.evaluate import Score
from schemas.files import FileRef
from schemas.model_settings import ModelSettings
from schemas.tokenize_corpus import TokenizedCorpus
from schemas.train import Snapshot, TrainingResult, TrainTimings
from stages.core.model import GPT
from stages.merge import merge
from stages.scoring.job import ScoredWeights
from stages.store.workspace import Workspace
from stages.training.files import write_safetensors

MODEL = load_preset("smoke").train.model


def snapshot(work: Workspace, step: int, lr_scale: float, model: ModelSettings) -> Snapshot:
    path = work.root / f"{step}.safetensors"
    sha256 = write_safetensors(path, {name: param.detach() for name, param in GPT(model).named_parameters()})
    ref = FileRef(path=path.name, num_bytes=path.stat().st_size, sha256=sha256)
    return Snapshot(step=step, lr_scale=lr_scale, qat_on=False, weights=ref)


def trained(work: Workspace, snapshots: list[Snapshot]) -> TrainingResult:
    timings = TrainTimings(
        training_seconds=1,
        warmup_seconds=0,
        median_step_milliseconds=1,
        tokens_per_second=1,
        snapshot_seconds=0,
        checkpoint_seconds=0,
        resumed_from_steps=(),
        peak_memory_bytes=1,
    )
    return TrainingResult(
        model=MODEL,
        last=snapshot(work, 99, 0.01, MODEL),
        snapshots=tuple(snapshots),
        num_parameters=1,
        steps=99,
        tokens_seen=1,
        epochs=1,
        stopped_by="max_steps",
        final_train_loss=1,
        qat_steps=0,
        groups=(),
        changes=(),
        metrics=FileRef(path="metrics.parquet", num_bytes=1, sha256="0" * 64),
        timings=timings,
    )


def test_a_window_without_snapshots_is_refused_with_what_there_is(
    make_workspace: Callable[..., Workspace], tiny_tokens: TokenizedCorpus
) -> None:
    work = make_workspace()
    spec = load_preset("smoke").merge.derive(averaging=AveragingSettings(start_lr_scale=0.05))
    with pytest.raises(
        SpecError,
        match=r"start_lr_scale = 0.05: no snapshot .* 1 snapshots at lr scales 0.100 to 0.100.*method=last",
    ):
        merge(spec, trained(work, [snapshot(work, 9, 0.1, MODEL)]), tiny_tokens, work)
    with pytest.raises(SpecError, match="training left no snapshots"):
        merge(spec, trained(work, []), tiny_tokens, work)


def test_the_figures_are_summed_with_the_threads_of_the_settings(
    make_workspace: Callable[..., Workspace], tiny_tokens: TokenizedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, seen = make_workspace(), []
    score = Score(
        bpb=1,
        loss=1,
        nll_nats_sum=1,
        num_targets=1,
        num_bytes=1,
        num_bos_targets=0,
        bos_nats_sum=0,
        seconds=0,
    )
    scored = ScoredWeights(scores={"last": score, "merged": score})
    monkeypatch.setattr("stages.merge.launch_module", lambda *job: scored)
    monkeypatch.setattr(
        "stages.merge._relative_distance", lambda *states: float(seen.append(torch.get_num_threads()) or 0)
    )
    spec, snapshots = load_preset("smoke").merge, trained(work, [snapshot(work, 9, 0.1, MODEL)])
    before = torch.get_num_threads()
    for threads in (1, 3):
        merge(
            spec.derive(compute=replace(spec.compute, threads_per_process=threads)),
            snapshots,
            tiny_tokens,
            work,
        )
    assert seen == [1, 3]
    assert torch.get_num_threads() == before


def test_snapshots_of_different_models_are_not_averaged(
    make_workspace: Callable[..., Workspace], tiny_tokens: TokenizedCorpus
) -> None:
    work = make_workspace()
    snapshots = [snapshot(work, 8, 0.1, MODEL), snapshot(work, 9, 0.05, replace(MODEL, mlp_hidden=72))]
    with pytest.raises(
        StageError,
        match=r"cannot be averaged: tensor 'blocks.0.mlp.down.weight' of snapshot 1 has shape \(32, 72\)",
    ):
        merge(load_preset("smoke").merge, trained(work, snapshots), tiny_tokens, work)


def test_a_mean_of_all_steps_that_training_did_not_keep_is_refused(
    make_workspace: Callable[..., Workspace], tiny_tokens: TokenizedCorpus
) -> None:
    work = make_workspace()
    spec = load_preset("smoke").merge.derive(averaging=AveragingSettings(method="ema_of_steps"))
    with pytest.raises(SpecError, match=r"ema_of_steps: training kept no such mean; set train.snapshots"):
        merge(spec, trained(work, []), tiny_tokens, work)
