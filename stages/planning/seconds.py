"""Seconds of a stage, from earlier runs on the same kind of machine scaled by the work, or from a probe.

A part of each stage's seconds is the same for all sizes (start of the process, files). The rest grows with
its work.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from schemas.compute_settings import ComputeSettings
from schemas.files import Machine, StageRecord
from schemas.pipeline import PipelineSpec
from schemas.plan import Source
from schemas.quantizer_settings import CalibratedSettings, QuantizerSettings
from schemas.scoring_settings import ScoringSettings
from stages.planning.counts import long_context
from stages.planning.job import Probed, StepProbe
from stages.planning.work import TextSize, Work, audited_tokens, num_windows

ROUGH_FACTOR = 8.0
"""Work that differs by more makes an estimate rough."""
ASSUMED_SECONDS = {"package": 1.0, "check_size": 0.1, "publish": 3.0}
"""Stages that take as long for every model."""


@dataclass(frozen=True)
class Estimate:
    """Seconds (None: not known), where they come from, and the same in words. `share`: of the training steps
    that the settings allow, where a cap of seconds ends training.
    """

    seconds: float | None
    source: Source
    details: str
    share: float = 1.0


def by_earlier_results(
    stage: str, spec: Any, machine: Machine, work: Work, earlier: Iterable[tuple[StageRecord, Work]]
) -> Estimate | None:
    """The seconds of the stage on `machine`, by the earlier result whose work is nearest; the newest of
    equal ones. None where no earlier result is comparable. `earlier`: the newest first.
    """
    found = [
        (abs(math.log(_ratio(work, old))), record, old)
        for record, old in earlier
        if _comparable(stage, spec, machine, record)
    ]
    if not found:
        return None
    _, record, old = min(found, key=lambda item: item[0])
    whole = record.provenance.seconds
    growing = min(_growing_seconds(stage, record), whole)
    ratio = _ratio(work, old)
    scaled = whole_work = growing * ratio
    if work.most_seconds is not None:
        scaled = min(scaled, work.most_seconds)
    details = f"{record.provenance.key[:12]} took {whole:.1f} s"
    if abs(ratio - 1) > 0.005:
        rough = "" if 1 / ROUGH_FACTOR <= ratio <= ROUGH_FACTOR else ", so this is rough"
        details += f" for {1 / ratio:.3g} times the work{rough}"
    share = scaled / whole_work if whole_work else 1.0
    return Estimate(whole - growing + scaled, "earlier run", details, share)


def _ratio(work: Work, old: Work) -> float:
    return max(work.amount, 1e-9) / max(old.amount, 1e-9)


def _growing_seconds(stage: str, record: StageRecord) -> float:
    """The part of its seconds that grows with the work."""
    result = record.result
    if stage == "train":
        return float(result.timings.training_seconds)
    if stage == "merge":
        return float(result.last.seconds + result.score.seconds)
    if stage == "evaluate":
        learned = result.test_time_training
        scores = (result.non_overlapping, result.sliding, learned and learned.without, learned)
        return float(sum(score.seconds for score in scores if score))
    return 0.0 if stage in ASSUMED_SECONDS else float(record.provenance.seconds)


def _comparable(stage: str, spec: Any, machine: Machine, record: StageRecord) -> bool:
    """Whether the earlier result was made on such a machine, in the same way."""
    there = record.provenance.machine
    same_machine = (there.cpu, there.gpus, there.isa) == (machine.cpu, machine.gpus, machine.isa)
    return same_machine and _manner(stage, spec) == _manner(stage, record.spec)


def _manner(stage: str, spec: Any) -> Any:
    """What must be equal for seconds to compare, beside the machine."""
    if stage in ("train", "merge", "evaluate"):
        compute: ComputeSettings = spec.compute
        return compute
    if isinstance(spec, QuantizerSettings):
        text = spec.calibration.threads if isinstance(spec, CalibratedSettings) else None
        return spec.method, spec.limit_bytes is not None, text
    if stage == "tokenize_corpus":
        return spec.corpus.kind == "shards", spec.tokenizer.model_path is None, spec.compressor_baselines
    return None


def by_probe(stage: str, spec: PipelineSpec, size: TextSize, probed: Probed) -> Estimate | None:
    """The seconds of the stage by what the probe measured; None where it did not."""
    start = probed.start_seconds
    if stage == "train" and probed.steps is not None:
        return _trained(spec, probed.steps, start)
    if stage in ("merge", "evaluate") and probed.steps is not None:
        part = spec.merge if stage == "merge" else spec.evaluate
        comparable = _like_the_probe(spec, part.compute) and part.scoring == spec.evaluate.scoring
        if not comparable:
            return None
        found = _scored(stage, part.scoring, size, probed.steps, start)
        return _with_learning(found, spec, size, probed.steps) if stage == "evaluate" else found
    if stage == "quantize" and probed.model is not None:
        own_process = start if isinstance(spec.quantize, CalibratedSettings) else 0.0
        seconds = own_process + probed.model.quantize_seconds
        return Estimate(seconds, "probe", "a part of the weights, quantized and compressed")
    if stage == "audit" and probed.model is not None:
        seconds = start + probed.model.token_seconds * audited_tokens(spec)
        return Estimate(seconds, "probe", f"{1e6 * probed.model.token_seconds:.0f} µs a token in float32")
    return None


def _trained(spec: PipelineSpec, measured: StepProbe, start: float) -> Estimate:
    schedule = spec.train.schedule
    whole = schedule.max_steps * measured.step_seconds
    seconds = whole if schedule.step_seconds is None else min(whole, schedule.step_seconds)
    details = f"{measured.steps} steps of {1000 * measured.step_seconds:.0f} ms"
    return Estimate(start + measured.warmup_seconds + seconds, "probe", details, seconds / whole)


def _scored(
    stage: str, scoring: ScoringSettings, size: TextSize, measured: StepProbe, start: float
) -> Estimate:
    window, sliding = measured.window_seconds, measured.sliding_window_seconds or 0.0
    whole = num_windows(size.val_tokens, scoring, scoring.sequence_length)
    details = f"windows of {1000 * window:.1f} ms"
    if stage == "merge":  # the last iterate and the merged model
        return Estimate(start + 2 * whole * window, "probe", details)
    long = long_context(scoring)
    many = num_windows(size.val_tokens, long, long.stride) if long else 0
    return Estimate(
        start + whole * window + many * sliding, "probe", f"{details}, sliding {1000 * sliding:.1f} ms"
    )


def _with_learning(found: Estimate, spec: PipelineSpec, size: TextSize, measured: StepProbe) -> Estimate:
    """With test-time training, if it is on: as many windows as chunks, three times as long with their
    gradients, and once without.
    """
    lora = spec.evaluate.test_time_training
    if not lora.on or found.seconds is None:
        return found
    windows = num_windows(size.val_tokens, spec.evaluate.scoring, lora.chunk_tokens)
    seconds = 4 * windows * measured.window_seconds
    return replace(
        found, seconds=found.seconds + seconds, details=f"{found.details}, test-time training {seconds:.0f} s"
    )


def _like_the_probe(spec: PipelineSpec, compute: ComputeSettings) -> bool:
    names = ("device", "num_processes", "threads_per_process", "precision")
    return all(getattr(compute, name) == getattr(spec.train.compute, name) for name in names)
