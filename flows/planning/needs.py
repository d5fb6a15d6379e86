"""Memory and disk that each stage of a run needs, and warnings where this machine has less.

Imports neither Prefect nor torch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flows.inputs.specs import Plan
from schemas.compute_settings import ComputeSettings
from schemas.evaluate import EvaluateSpec
from schemas.stages import STAGES
from stages.planning.counts import count_parameters
from stages.planning.job import Probed
from stages.planning.memory import (
    PROCESS_BYTES,
    TrainingMemory,
    audit_memory,
    evaluation_memory,
    micro_batch,
    quantizing_memory,
    scoring_memory,
    training_disk,
    training_memory,
)
from stages.planning.room import free_disk, free_main_memory, gpu_memory
from stages.planning.work import TextSize
from stages.store.store import Store
from stages.tokenization.parts import PART_BYTES, why_whole

USABLE = 0.9
"""Of the memory that is there: allocators leave gaps, and the estimates are about 10 % off."""
_SMALL_FILES = 2 * 2**20


@dataclass(frozen=True)
class Need:
    """Bytes: main memory of all processes of a stage, memory of one GPU, disk."""

    host_bytes: int
    gpu_bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class Needs:
    """What the needs follow from. `steps` of training, `probed` where it was measured."""

    plan: Plan
    size: TextSize
    steps: int
    keep_checkpoints: int
    probed: Probed | None

    def by_stage(self) -> dict[str, Need]:
        spec = self.plan.spec
        model = spec.train.model
        weights = 4 * count_parameters(model).total
        measured = self.probed.steps.peak_bytes if self.probed and self.probed.steps else None
        peak = training_memory(spec.train).peak(micro_batch(spec.train))
        merged = scoring_memory(model, spec.merge.scoring, spec.merge.compute)
        evaluated = evaluation_memory(model, spec.evaluate)
        small = Need(PROCESS_BYTES, 0, _SMALL_FILES)
        found = {
            "tokenize_corpus": Need(PROCESS_BYTES, 0, self._tokens_disk()),
            "train": self._computed(
                spec.train.compute,
                peak,
                training_disk(spec.train, self.steps, self.keep_checkpoints),
                measured,
            ),
            "merge": self._computed(spec.merge.compute, merged + 3 * weights, weights),
            "quantize": Need(quantizing_memory(spec, self.plan.quantize), 0, weights),
            "package": Need(PROCESS_BYTES, 0, weights // 2 + _SMALL_FILES),
            "evaluate": self._computed(spec.evaluate.compute, evaluated, _SMALL_FILES),
            "audit": Need(audit_memory(spec), 0, _SMALL_FILES),
        }
        return {name: found.get(name, small) for name in STAGES}

    def _tokens_disk(self) -> int:
        """Bytes of the shards, and of the parts that they are put together from."""
        tokens = 2 * (self.size.train_tokens + self.size.val_tokens)
        has_parts = why_whole(self.plan.spec.tokenize) is None and self.size.num_bytes >= 2 * PART_BYTES
        return tokens * (1 + has_parts)

    @staticmethod
    def _computed(compute: ComputeSettings, tensors: int, disk: int, measured: int | None = None) -> Need:
        """`tensors`, or `measured`, in each process: on its GPU, or in main memory beside the program."""
        if compute.device == "cuda":
            return Need(compute.num_processes * 2 * PROCESS_BYTES, measured or tensors, disk)
        return Need(compute.num_processes * (measured or PROCESS_BYTES + tensors), 0, disk)


def warnings_of(plan: Plan, needs: Mapping[str, Need], gpu_bytes: int | None, store: Store) -> Iterator[str]:
    """What may not fit, of the stages that run, with the remedy. `gpu_bytes`: memory of each GPU, None: that
    of this machine.
    """
    on_gpu = {name: need.gpu_bytes for name, need in needs.items() if need.gpu_bytes}
    there = (gpu_bytes or gpu_memory()) if on_gpu else None
    if on_gpu and there is None:
        yield "no GPU is seen here: --gpu-memory says how many GiB each GPU of the run has"
    for name, bytes_ in on_gpu.items():
        if there is not None and bytes_ > USABLE * there:
            room = f"about {_gib(bytes_)} of each GPU's {_gib(there)}"
            yield f"{name}: may not fit: {room}. {_remedy(plan, name, there)}"
    free = free_main_memory()
    for name, need in needs.items():
        if need.host_bytes > USABLE * free:
            room = f"about {_gib(need.host_bytes)} of main memory, {_gib(free)} are free"
            yield f"{name}: may not fit: {room}. {_remedy(plan, name, free)}"
    disk, left = sum(need.disk_bytes for need in needs.values()), free_disk(store.root)
    if disk > left:
        yield (
            f"disk: about {_gib(disk)} will be written, {_gib(left)} are free in {store.root}. `fairway gc` "
            "lists what no run needs; --store names another folder"
        )


def _remedy(plan: Plan, stage: str, there: int) -> str:
    """The setting that makes the stage fit into `there` bytes."""
    spec = plan.spec
    if stage == "train":
        return _smaller_micro_batch(plan, there)
    if stage in ("merge", "evaluate"):
        merge = EvaluateSpec(scoring=spec.merge.scoring, compute=spec.merge.compute)
        part = merge if stage == "merge" else spec.evaluate
        fewer = part.scoring.batch_tokens
        while fewer > part.scoring.sequence_length:
            fewer //= 2
            smaller = part.derive(scoring=part.scoring.derive(batch_tokens=fewer))
            if evaluation_memory(spec.train.model, smaller) <= USABLE * there:
                return f"{stage}.scoring.batch_tokens={fewer} fits"
        return f"{stage}.scoring.batch_tokens does not make it fit: take a smaller model"
    if stage == "quantize" and hasattr(spec.quantize, "calibration"):
        return "quantize.calibration.batch_sequences=1 needs less; so does quantize.method=gptq_lite"
    return "Free some, or take a smaller model"


def _smaller_micro_batch(plan: Plan, there: int) -> str:
    train = plan.spec.train
    memory: TrainingMemory = training_memory(train)
    share = 1
    room = int(USABLE * there)
    if train.compute.device == "cpu":
        share, room = train.compute.num_processes, room // train.compute.num_processes - PROCESS_BYTES
    fits = memory.largest_micro_batch(room)
    if fits == 0:
        return "Not even one sequence fits: take a shorter train.data.sequence_length or a smaller model"
    most = max(n for n in range(1, fits + 1) if share and micro_batch(train) % n == 0)
    return f"train.data.micro_batch_sequences={most} fits"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
