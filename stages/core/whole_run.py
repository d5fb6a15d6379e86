"""From token shards to the blob: train, merge, quantize and pack, as the recipe says; on the CPU the same
bytes each time.
"""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from schemas.quantizer_settings import CalibratedSettings
from schemas.recipe import Recipe
from stages.core.averaging import (
    average_states,
    averages_snapshots,
    averaging_weights,
    choose_snapshots,
)
from stages.core.blob.packing import pack
from stages.core.calibrated.whole_model import quantize_state
from stages.core.calibrated.with_text import quantize_with_text
from stages.core.distributed import patient_group
from stages.core.loader import TokenStream
from stages.core.trainer import Hooks, StepMetrics, TrainedModel, Trainer, step_line
from stages.core.whole_files import write_whole

LINES_EVERY_SECONDS = 5.0
NO_EMA = "merge.averaging.method = ema_of_steps: training kept no such mean; set train.snapshots.ema_horizon"


def repeat_run(recipe: Recipe, shards: list[Path], blob_path: Path, say: Callable[[str], None]) -> None:
    """Train on `shards` and write the blob; the first process does all but the training.

    `say` gets the log's lines.

    Raises ValueError for too little calibration text, before training, and when no snapshot lies in the
    averaging window; DivergedError when the loss or its gradient is not finite, LimitTooSmallError as the
    quantizer does.
    """
    if isinstance(recipe.quantizer, CalibratedSettings):
        recipe.quantizer.calibration.count_in(len(TokenStream(shards)))
    began = time.perf_counter()
    snapshots: list[tuple[float, dict[str, Tensor]]] = []
    hooks = Hooks(
        _narrator(recipe, say), lambda step, lr_scale, qat_on, weights: snapshots.append((lr_scale, weights))
    )
    trainer = Trainer(recipe.train, shards, hooks)
    if trainer.rank == 0:
        say(
            f"{sum(param.numel() for param in trainer.model.parameters()):,} parameters on "
            f"{trainer.world} × {trainer.device.type}"
        )
        for group in trainer.groups:
            say(
                f"group {group.name}: {len(group.names)} tensors, {group.optimizer}, lr "
                f"{group.lr:g}, weight decay {group.weight_decay:g}"
            )
    waiting = patient_group()  # the first process quantizes while the others wait
    trained = trainer.run()
    if trainer.rank == 0:
        say(f"trained {trained.steps} steps in {trained.seconds:.3f} s, stopped by {trained.stopped_by}")
        merged = _merge(recipe, snapshots, trained)
        metadata = {"model": recipe.train.model.as_metadata(), "method": recipe.quantizer.method}
        if isinstance(recipe.quantizer, CalibratedSettings):
            calibrated = quantize_with_text(
                merged, recipe.train.model, TokenStream(shards), recipe.quantizer, metadata, say
            )
            quantized = calibrated.model
            say(f"training text was read and used for {calibrated.text_seconds:.1f} s after training")
        else:
            quantized = quantize_state(merged, recipe.quantizer)
        blob = pack(quantized, metadata, recipe.quantizer.zstd_level)
        write_whole(blob_path, blob)
        say(
            f"blob {len(blob)} bytes sha256 {hashlib.sha256(blob).hexdigest()} after "
            f"{time.perf_counter() - began:.1f} s in all"
        )
    if waiting is not None:
        dist.barrier(group=waiting)


def _merge(
    recipe: Recipe, snapshots: list[tuple[float, dict[str, Tensor]]], trained: TrainedModel
) -> dict[str, Tensor]:
    if recipe.averaging.method == "ema_of_steps":
        if trained.ema is None:
            raise ValueError(NO_EMA)
        return trained.ema
    states = [{name: param.detach().to("cpu", copy=True) for name, param in trained.model.named_parameters()}]
    if averages_snapshots(recipe.averaging):
        chosen = choose_snapshots([lr_scale for lr_scale, _ in snapshots], recipe.averaging)
        if not chosen:
            raise ValueError(
                f"no snapshot was taken below the learning-rate scale {recipe.averaging.start_lr_scale}: "
                "nothing to average"
            )
        states = [snapshots[index][1] for index in chosen]
    return average_states(states, averaging_weights(len(states), recipe.averaging))


def _narrator(recipe: Recipe, say: Callable[[str], None]) -> Callable[[StepMetrics], None]:
    last_line = float("-inf")

    def tell(metrics: StepMetrics) -> None:
        nonlocal last_line
        now = time.monotonic()
        if now - last_line >= LINES_EVERY_SECONDS or metrics.step in (1, recipe.train.schedule.max_steps):
            last_line = now
            say(step_line(metrics, recipe.train.schedule))

    return tell
