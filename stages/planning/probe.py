"""Starts the probes: a few real steps, batches and tensors, in processes as the stages start theirs."""

import tempfile
import time
from pathlib import Path

import numpy as np

from schemas.pipeline import PipelineSpec
from schemas.quantize import QuantizeSpec, quantize_compute
from stages.core.shards import BOS_ID, ShardWriter
from stages.planning.job import ModelProbe, ModelProbeJob, Probed, StepProbe, StepProbeJob
from stages.processes.launch import launch_module
from stages.store.workspace import no_progress

_SHARD_TOKENS = 4_000_000
_DOCUMENT_TOKENS = 1_000


def probe(
    spec: PipelineSpec, quantizer: QuantizeSpec, folder: Path, steps: bool, model: bool, timeout: float | None
) -> Probed:
    """Measure on this machine. `steps`: training and scoring, `model`: quantization and predictions. Its
    files lie in a new folder below `folder` while it runs.

    `spec` and `quantizer` have their precision resolved. Raises SpecError and StageError as training does
    for settings that do not fit this machine, ChildFailedError and TimeoutError as `launch_module` does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="probe-") as made:
        place = Path(made)
        started, inside = time.perf_counter(), 0.0
        of_steps = of_model = None
        if steps:
            of_steps = _probe_steps(spec, place, timeout)
            inside += of_steps.inside_seconds
        if model:
            of_model = _probe_model(spec, quantizer, place, timeout)
            inside += of_model.inside_seconds
        spent = time.perf_counter() - started - inside
    return Probed(start_seconds=max(0.0, spent) / (int(steps) + int(model)), steps=of_steps, model=of_model)


def _probe_steps(spec: PipelineSpec, place: Path, timeout: float | None) -> StepProbe:
    tokens = np.random.default_rng(0).integers(BOS_ID + 1, spec.train.model.vocab_size, _SHARD_TOKENS)
    tokens[::_DOCUMENT_TOKENS] = BOS_ID
    with ShardWriter(place, "train") as writer:
        writer.write(tokens)
    job = StepProbeJob(train=spec.train, shards=tuple(writer.paths), scoring=spec.evaluate.scoring)
    return launch_module(
        "stages.planning.step_probe", job, StepProbe, place, spec.train.compute, no_progress, timeout
    )


def _probe_model(
    spec: PipelineSpec, quantizer: QuantizeSpec, place: Path, timeout: float | None
) -> ModelProbe:
    length = spec.merge.scoring.sequence_length
    job = ModelProbeJob(model=spec.train.model, quantizer=quantizer, sequence_length=length)
    module, compute = "stages.planning.model_probe", quantize_compute(quantizer)
    return launch_module(module, job, ModelProbe, place, compute, no_progress, timeout)
