"""The plan of a run: each stage's seconds, memory, disk and money, and warnings where something will not fit.

Imports neither Prefect nor torch; with a probe, other processes measure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from flows.inputs.specs import Plan
from flows.planning.chain import NextStage, next_stages
from flows.planning.needs import Need, Needs, warnings_of
from schemas.pipeline import PipelineReport, PipelineSpec
from schemas.plan import PlannedStage, RunPlan
from schemas.runtime import RunOptions
from schemas.tokenize_corpus import CorpusManifest
from stages.execution.runner import run_stage
from stages.planning.counts import count_parameters
from stages.planning.history import earlier_results, newest_reports
from stages.planning.job import Probed
from stages.planning.probe import probe
from stages.planning.seconds import ASSUMED_SECONDS, Estimate, by_earlier_results, by_probe
from stages.planning.work import TextSize, counted_size, text_size, work_of
from stages.store.machine import this_machine
from stages.store.store import Store

PROBED_TEXT_BYTES = 64 * 2**20
"""A probe tokenizes a text up to this size for good: the run then finds the tokens in the store."""
_OF_STEPS, _OF_MODEL = {"train", "merge", "evaluate"}, {"quantize", "audit"}
_STORED = Estimate(0.0, "stored", "")
_UNKNOWN = Estimate(None, "unknown", "--probe measures it")


@dataclass(frozen=True)
class Asked:
    """What the user asks of the plan. `gpu_hour`: money for one GPU for an hour; `gpu_bytes`: memory of each
    GPU that the run will have, None: that of this machine.
    """

    gpu_hour: float | None = None
    gpu_bytes: int | None = None
    probe: bool = False


def plan_of_run(plan: Plan, store: Store, runtime: RunOptions, asked: Asked) -> RunPlan:
    """Plan the run against the store.

    Raises SpecError as the run would for text and settings that cannot be used; with a probe also what
    training and tokenization raise.
    """
    chain, manifest = next_stages(plan, store)
    if asked.probe and _probe_tokenizes(chain, manifest):
        run_stage(store, "tokenize_corpus", chain["tokenize_corpus"].spec, {"manifest": manifest}, runtime)
        chain, manifest = next_stages(plan, store)
    running = [name for name, item in chain.items() if item.record is None]
    probed = _probe(plan, store, set(running), runtime) if asked.probe else None
    tokens = chain["tokenize_corpus"].record
    size = text_size(plan.spec.tokenize, manifest, tokens.result if tokens else None)
    reports = newest_reports(store.root) if running else []
    found = {name: _estimate(plan.spec, chain[name], size, probed, store, reports) for name in running}
    schedule, data = plan.spec.train.schedule, plan.spec.train.data
    steps = max(1, round(schedule.max_steps * found.get("train", _STORED).share))
    needs = Needs(plan, size, steps, runtime.keep_checkpoints, probed).by_stage()
    gpus = max((_gpus(plan.spec, name) for name in running), default=0)
    hourly = None if asked.gpu_hour is None else asked.gpu_hour * gpus
    return RunPlan(
        name=plan.label,
        preset=plan.preset,
        stages=tuple(
            _planned(item, found.get(name, _STORED), needs[name], hourly) for name, item in chain.items()
        ),
        num_parameters=count_parameters(plan.spec.train.model).total,
        steps=steps,
        tokens=steps * data.batch_tokens,
        gpus=gpus,
        warnings=tuple(warnings_of(plan, {name: needs[name] for name in running}, asked.gpu_bytes, store)),
    )


def _probe_tokenizes(chain: dict[str, NextStage], manifest: CorpusManifest) -> bool:
    small = sum(file.num_bytes for file in manifest.files) <= PROBED_TEXT_BYTES
    return small and chain["tokenize_corpus"].record is None


def _probe(plan: Plan, store: Store, running: set[str], runtime: RunOptions) -> Probed | None:
    steps, model = bool(running & _OF_STEPS), bool(running & _OF_MODEL)
    if not (steps or model):
        return None
    timeout = runtime.stage_timeout_seconds
    return probe(plan.spec, plan.quantize, store.root / "cache" / "probe", steps, model, timeout)


def _estimate(
    spec: PipelineSpec,
    item: NextStage,
    size: TextSize,
    probed: Probed | None,
    store: Store,
    reports: Sequence[PipelineReport],
) -> Estimate:
    """By the probe, else by earlier results, else what is assumed for small stages."""
    stage = item.stage
    if probed is not None and (measured := by_probe(stage.name, spec, size, probed)) is not None:
        return measured
    work = work_of(stage.name, spec, size)
    earlier = [
        (found.record, work_of(stage.name, run.spec, counted_size(run.tokenized), run.trained.tokens_seen))
        for found in earlier_results(store, reports, stage)
        for run in (found.run,)
    ]
    machine = this_machine(stage.compute(item.spec))
    if (found := by_earlier_results(stage.name, item.spec, machine, work, earlier)) is not None:
        return found
    if stage.name in ASSUMED_SECONDS:
        return Estimate(ASSUMED_SECONDS[stage.name], "assumed", "takes as long for every model")
    return _UNKNOWN


def _gpus(spec: PipelineSpec, stage: str) -> int:
    """GPUs that the stage uses."""
    computes = {"train": spec.train.compute, "merge": spec.merge.compute, "evaluate": spec.evaluate.compute}
    compute = computes.get(stage)
    return compute.num_processes if compute is not None and compute.device == "cuda" else 0


def _planned(item: NextStage, found: Estimate, need: Need, hourly: float | None) -> PlannedStage:
    """`hourly`: money for an hour of all GPUs that the run holds."""
    cached = item.record is not None
    return PlannedStage(
        stage=item.stage.name,
        cached=cached,
        key=item.key,
        reasons=item.reasons,
        seconds=found.seconds,
        source=found.source,
        details=found.details,
        host_bytes=0 if cached else need.host_bytes,
        gpu_bytes=0 if cached else need.gpu_bytes,
        disk_bytes=0 if cached else need.disk_bytes,
        cost=None if hourly is None or found.seconds is None else found.seconds / 3600 * hourly,
    )
