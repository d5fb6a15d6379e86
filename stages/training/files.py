"""Files of one training run: metrics, snapshots and checkpoints, written off the loop's critical path.

A checkpoint is a safetensors file and a JSON beside it with both its own sha256 and the snapshots taken so
far. On resume the newest one whose files are all sound counts; anything written after it is removed. The last
one holds the finished run, so that a kill before the result is published repeats no step; publishing takes
checkpoints and metrics.jsonl away.
"""

import hashlib
import json
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from stages.core.trainer import StepMetrics, TrainState
from stages.core.whole_files import TEMPORARY_FILES, write_whole
from stages.processes.meeting import refuse_stale_try
from stages.training.metrics import LINES_NAME, TABLE_NAME, read_lines, write_table

log = logging.getLogger(__name__)


class TrainingFiles:
    """The files of one run in `folder`. Writing happens in one thread, in order; `close` waits for it."""

    def __init__(self, folder: Path, checkpoint_every_seconds: float, keep_checkpoints: int) -> None:
        self.folder, self._every, self._keep = folder, checkpoint_every_seconds, keep_checkpoints
        for name in ("snapshots", "checkpoints"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._metrics_path = folder / LINES_NAME
        self.snapshots: list[dict[str, Any]] = []
        self.resumed_from: list[int] = []
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._writes: list[Future[None]] = []
        self._last_checkpoint = time.monotonic()

    def resume(self) -> TrainState | None:
        """The newest sound checkpoint, or None; files of steps after it and half-written ones are removed."""
        for path in self.folder.rglob(TEMPORARY_FILES):
            path.unlink()
        state = None
        for path in sorted((self.folder / "checkpoints").glob("*.json"), reverse=True):
            if state is None and (state := self._load(path)) is not None:
                continue
            if state is None:
                path.unlink()
                path.with_suffix(".safetensors").unlink(missing_ok=True)
        step = state.steps if state else 0
        kept = {item["file"] for item in self.snapshots}
        for path in (self.folder / "snapshots").iterdir():
            if path.name not in kept:
                path.unlink()
        rows = [row for row in self.metrics() if row["step"] <= step]
        if len(rows) < step:
            log.warning("metrics of steps before the checkpoint are incomplete: %d of %d", len(rows), step)
        write_whole(self._metrics_path, "".join(json.dumps(row) + "\n" for row in rows).encode())
        if state:
            self.resumed_from.append(step)
            log.info("going on from the checkpoint of step %d", step)
        return state

    def read_checkpoint(self, step: int) -> TrainState:
        """The checkpoint that the first process chose. Raises OSError if this process cannot read it."""
        state = self._load(self.folder / "checkpoints" / f"step-{step:08d}.json")
        if state is None:
            raise OSError(
                f"the checkpoint of step {step} is not readable here: all processes must share the "
                "store's disk"
            )
        return state

    def add_metrics(self, metrics: StepMetrics) -> None:
        with self._metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(metrics), allow_nan=False) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All rows so far; a line that a kill cut in half is left out."""
        return read_lines(self._metrics_path)

    def add_snapshot(self, step: int, lr_scale: float, qat_on: bool, weights: dict[str, Tensor]) -> None:
        entry = {"file": f"step-{step:08d}.safetensors", "step": step, "lr_scale": lr_scale, "qat_on": qat_on}
        self.snapshots.append(entry)
        self._submit(self._write_snapshot, entry, weights)

    def checkpoint_due(self) -> bool:
        """Every so many seconds, unless the writer is still busy."""
        return time.monotonic() - self._last_checkpoint >= self._every and all(
            write.done() for write in self._writes
        )

    def add_checkpoint(self, state: TrainState) -> None:
        self._last_checkpoint = time.monotonic()
        self._submit(self._write_checkpoint, state, list(self.snapshots))

    def close(self) -> None:
        """Wait for the writer; raises what it met."""
        self._writer.shutdown(wait=True)
        for write in self._writes:
            write.result()

    def write_parquet(self, scored_text: dict[str, Any] | None = None) -> None:
        """metrics.jsonl -> metrics.parquet (one row a step). `scored_text`: what `write_table` takes."""
        write_table(self.folder / TABLE_NAME, self.metrics(), scored_text)

    def _submit(self, action: Any, *arguments: Any) -> None:
        finished = [write for write in self._writes if write.done()]
        for write in finished:
            write.result()
            self._writes.remove(write)
        self._writes.append(self._writer.submit(action, *arguments))

    def _write_snapshot(self, entry: dict[str, Any], weights: dict[str, Tensor]) -> None:
        refuse_stale_try()
        entry["sha256"] = write_safetensors(self.folder / "snapshots" / entry["file"], weights)

    def _write_checkpoint(self, state: TrainState, snapshots: list[dict[str, Any]]) -> None:
        refuse_stale_try()
        path = self.folder / "checkpoints" / f"step-{state.steps:08d}.safetensors"
        about = {
            "sha256": write_safetensors(path, state.tensors),
            "steps": state.steps,
            "seconds": state.seconds,
            "qat_steps": state.qat_steps,
            "last_lr_scale": state.last_lr_scale,
            "last_qat_on": state.last_qat_on,
            "snapshots": snapshots,
            "resumed_from": self.resumed_from,
        }
        write_whole(path.with_suffix(".json"), json.dumps(about).encode())
        for old in sorted((self.folder / "checkpoints").glob("*.json"))[: -self._keep]:
            old.unlink()
            old.with_suffix(".safetensors").unlink(missing_ok=True)

    def _load(self, path: Path) -> TrainState | None:
        try:
            about = json.loads(path.read_bytes())
            for item in about["snapshots"]:
                _read_sound(self.folder / "snapshots" / item["file"], item["sha256"])
            tensors = load(_read_sound(path.with_suffix(".safetensors"), about["sha256"]))
            figures = {
                key: about[key] for key in ("steps", "seconds", "qat_steps", "last_lr_scale", "last_qat_on")
            }
            state = TrainState(tensors, **figures)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            log.warning("checkpoint %s cannot be used, trying the one before it: %s", path.name, error)
            return None
        self.snapshots, self.resumed_from = about["snapshots"], about["resumed_from"]
        return state


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write whole or not at all; returns the sha256 (hex) of the file."""
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    write_whole(path, content)
    return hashlib.sha256(content).hexdigest()


def _read_sound(path: Path, sha256: str) -> bytes:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path.name} is damaged")
    return content
