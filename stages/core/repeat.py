"""From token shards to the blob: train, merge, quantize and pack, as the recipe says; on the CPU the same bytes each time."""

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from schemas.settings import Recipe
from stages.core.averaging import average_states, averaging_weights, choose_snapshots
from stages.core.packing import pack
from stages.core.quantizers.methods import METHODS, quantize_state
from stages.core.training import Hooks, StepMetrics, TrainedModel, Trainer, step_line

LINES_EVERY_SECONDS = 5.0


def repeat_run(recipe: Recipe, shards: list[Path], blob_path: Path, say: Callable[[str], None]) -> None:
    """Train on `shards` and write the blob; the first process does all but the training. `say` gets the log's lines.

    Raises DivergedError when the loss is not finite, ValueError for a quantizer that needs more than the weights, before
    training, and when no snapshot lies in the averaging window.
    """
    if recipe.quantizer.method not in METHODS:
        raise ValueError(f"quantizer.method = {recipe.quantizer.method}: this program can repeat {', '.join(METHODS)}")
    began = time.perf_counter()
    snapshots: list[tuple[float, dict[str, Tensor]]] = []
    hooks = Hooks(_narrator(recipe, say), lambda step, lr_scale, qat_on, weights: snapshots.append((lr_scale, weights)))
    trainer = Trainer(recipe.train, shards, hooks)
    if trainer.rank == 0:
        say(f"{sum(param.numel() for param in trainer.model.parameters()):,} parameters on {trainer.world} × {trainer.device.type}")
        for group in trainer.groups:
            say(f"group {group.name}: {len(group.names)} tensors, {group.optimizer}, lr {group.lr:g}, weight decay {group.weight_decay:g}")
    trained = trainer.run()
    if trainer.rank == 0:
        say(f"trained {trained.steps} steps in {trained.seconds:.3f} s, stopped by {trained.stopped_by}")
        merged = _merge(recipe, snapshots, trained)
        quantized = quantize_state(merged, recipe.quantizer)
        blob = pack(quantized, {"model": asdict(recipe.train.model), "method": quantized.method}, recipe.quantizer.zstd_level)
        write_blob(blob_path, blob)
        say(f"blob {len(blob)} bytes sha256 {hashlib.sha256(blob).hexdigest()} after {time.perf_counter() - began:.1f} s in all")
    if dist.is_initialized():
        dist.barrier()


def write_blob(path: Path, blob: bytes) -> None:
    """Whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(blob)
    os.replace(temporary, path)


def _merge(recipe: Recipe, snapshots: list[tuple[float, dict[str, Tensor]]], trained: TrainedModel) -> dict[str, Tensor]:
    states = [{name: param.detach().to("cpu", copy=True) for name, param in trained.model.named_parameters()}]
    if recipe.averaging.method != "last":
        chosen = choose_snapshots([lr_scale for lr_scale, _ in snapshots], recipe.averaging)
        if not chosen:
            raise ValueError(f"no snapshot was taken below the learning-rate scale {recipe.averaging.start_lr_scale}: nothing to average")
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
