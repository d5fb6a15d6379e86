"""Settings of a training run, and of its optimizer, schedule, data and snapshots.

Standard library only: these classes ship in the submission.
"""

from dataclasses import dataclass
from typing import Literal

from schemas.compute_settings import ComputeSettings
from schemas.model_settings import ModelSettings
from schemas.qat_settings import QatSettings
from schemas.scoring_settings import Windows
from schemas.settings_base import Settings, setting


def _exactly_one(settings: Settings, first: str, second: str) -> None:
    a, b = getattr(settings, first), getattr(settings, second)
    if (a is None) == (b is None):
        raise ValueError(
            f"{first} = {a} and {second} = {b}: give exactly one of them and leave the other empty"
        )


@dataclass(frozen=True)
class OptimizerSettings(Settings):
    """Muon for matrices, AdamW for embeddings and for scalars and vectors."""

    muon_lr: float = setting(0.025, "learning rate of the matrices", minimum=0)
    muon_momentum: float = setting(0.99, "Nesterov momentum after its warm-up", minimum=0, maximum=0.9999)
    muon_momentum_start: float = setting(
        0.92, "Nesterov momentum at the first step", minimum=0, maximum=0.9999
    )
    muon_momentum_warmup_fraction: float | None = setting(
        0.25, "share of progress over which momentum rises", unit="fraction of progress", minimum=0, maximum=1
    )
    muon_momentum_warmup_steps: int | None = setting(
        None, "the same, counted in steps", unit="steps", minimum=0
    )
    muon_weight_decay: float = setting(0.04, "decoupled weight decay of the matrices", minimum=0)
    muon_row_normalize: bool = setting(
        False, "divide each row of an update by its 2-norm before it is orthogonalised (MuonEq-R)"
    )
    newton_schulz_steps: int = setting(5, "iterations of the orthogonalisation", minimum=1, maximum=20)
    embedding_lr: float = setting(0.035, "learning rate of the embeddings (AdamW)", minimum=0)
    scalar_lr: float = setting(0.025, "learning rate of gains, scales and gates (AdamW)", minimum=0)
    adam_beta1: float = setting(0.9, "AdamW's decay of the mean", minimum=0, maximum=0.9999)
    adam_beta2: float = setting(0.95, "AdamW's decay of the square", minimum=0, maximum=0.99999)
    adam_eps: float = setting(1e-8, "AdamW's denominator floor", above=0)
    adam_weight_decay: float = setting(0.04, "decoupled weight decay of the AdamW groups", minimum=0)
    embedding_weight_decay: float | None = setting(
        None, "that of the embeddings; empty: adam_weight_decay", minimum=0
    )
    scalar_weight_decay: float | None = setting(
        None, "that of gains, scales and gates; empty: adam_weight_decay", minimum=0
    )
    grad_clip_norm: float = setting(
        0.3, "gradients are scaled down to this norm; 0 turns clipping off", minimum=0
    )
    frozen: tuple[str, ...] = setting((), "patterns of parameter names that get no updates on purpose")

    def check(self) -> None:
        _exactly_one(self, "muon_momentum_warmup_fraction", "muon_momentum_warmup_steps")


@dataclass(frozen=True)
class ScheduleSettings(Settings):
    """Progress runs from 0 to 1 in steps or in seconds of training, whichever cap comes first."""

    max_steps: int = setting(20_000, "optimizer steps at most", unit="steps", minimum=1)
    max_seconds: float | None = setting(
        None, "training time at most, evaluation and warm-up excluded; empty: no cap", unit="seconds", above=0
    )
    reserve_seconds: float = setting(
        0.0,
        "seconds of max_seconds kept for a quantizer that reads training text; steps end so much earlier",
        unit="seconds",
        minimum=0,
    )
    warmdown_fraction: float | None = setting(
        0.5,
        "last share of progress over which the learning rate falls to 0",
        unit="fraction of progress",
        minimum=0,
        maximum=1,
    )
    warmdown_steps: int | None = setting(
        None, "the same, in steps (of their measured length when time is the cap)", unit="steps", minimum=0
    )
    min_lr_scale: float = setting(
        0.0, "the learning rate never falls below this", unit="fraction of the peak", minimum=0, maximum=1
    )
    loop_start_fraction: float = setting(
        0.35,
        "progress from which model.loop_passes apply; before it each layer runs once",
        unit="fraction of progress",
        minimum=0,
        maximum=0.95,
    )
    compile_warmup_steps: int = setting(
        0, "untimed passes that compile and leave all state untouched", unit="steps", minimum=0
    )

    def check(self) -> None:
        _exactly_one(self, "warmdown_fraction", "warmdown_steps")
        if self.reserve_seconds and (self.max_seconds is None or self.reserve_seconds >= self.max_seconds):
            raise ValueError(
                f"reserve_seconds = {self.reserve_seconds:g}: must be less than max_seconds = "
                f"{self.max_seconds}; it is a part of it"
            )

    @property
    def step_seconds(self) -> float | None:
        """Seconds in which steps are taken at most; None without a cap."""
        return None if self.max_seconds is None else self.max_seconds - self.reserve_seconds


@dataclass(frozen=True)
class DataSettings(Settings):
    """How shards become batches. The global batch is the same whatever the number of processes."""

    batch_tokens: int = setting(
        786_432, "tokens in one optimizer step over all processes", unit="tokens", minimum=1
    )
    sequence_length: int = setting(2048, "tokens in a training sequence", unit="tokens", minimum=2)
    micro_batch_sequences: int = setting(
        48, "sequences in one forward pass of one process", unit="sequences", minimum=1
    )
    order: Literal["shuffled", "sequential"] = setting(
        "shuffled", "order of sequences: by seed, or as they lie in the shards"
    )
    windows: Windows = setting(
        "stream",
        (
            "stream: sequences lie one after another in the shards; documents: each begins with a document, "
            "or inside one that is longer"
        ),
    )
    context_lengths: tuple[int, ...] = setting(
        (),
        "progressive context: tokens into which sequences are cut in the first parts of the run; empty: none",
        unit="tokens",
        minimum=2,
        later=True,
    )
    context_ends: tuple[float, ...] = setting(
        (),
        "where each of context_lengths ends; then whole sequences",
        unit="fraction of progress",
        above=0,
        maximum=1,
        later=True,
    )

    def check(self) -> None:
        if self.batch_tokens % self.sequence_length:
            raise ValueError(
                f"batch_tokens = {self.batch_tokens}: must be a multiple of sequence_length = "
                f"{self.sequence_length}"
            )
        if len(self.context_lengths) != len(self.context_ends):
            raise ValueError(
                f"context_lengths = {list(self.context_lengths)} and context_ends = "
                f"{list(self.context_ends)}: give one end for each length"
            )
        for name in ("context_lengths", "context_ends"):
            values = getattr(self, name)
            if list(values) != sorted(set(values)):
                raise ValueError(f"{name} = {list(values)}: each must be larger than the one before")
        if self.context_ends and self.context_ends[-1] == 1:
            raise ValueError(
                f"context_ends = {list(self.context_ends)}: the last must be below 1, because whole "
                "sequences follow it"
            )
        for length in self.context_lengths:
            if length >= self.sequence_length or self.sequence_length % length:
                raise ValueError(
                    f"context_lengths = {list(self.context_lengths)}: {length} must divide sequence_length = "
                    f"{self.sequence_length} and be smaller"
                )

    def context_at(self, progress: float) -> int:
        """Tokens of a sequence that attend to one another at `progress`, from 0 to 1."""
        for length, end in zip(self.context_lengths, self.context_ends, strict=True):
            if progress < end:
                return length
        return self.sequence_length

    @property
    def batch_sequences(self) -> int:
        return self.batch_tokens // self.sequence_length


@dataclass(frozen=True)
class SnapshotSettings(Settings):
    """When training writes weights for the averaging stage (tight SWA)."""

    start_lr_scale: float = setting(
        0.2,
        "first snapshot once the learning-rate scale is below this; 0: none",
        unit="fraction of the peak",
        minimum=0,
        maximum=1,
    )
    every_fraction: float | None = setting(
        None, "progress between snapshots", unit="fraction of progress", above=0, maximum=1
    )
    every_steps: int | None = setting(50, "steps between snapshots", unit="steps", minimum=1)
    ema_horizon: float | None = setting(
        None,
        "exponential mean of the weights after every step, over about this share of the run; empty: none",
        unit="fraction of progress",
        above=0,
        maximum=1,
    )

    def check(self) -> None:
        _exactly_one(self, "every_fraction", "every_steps")


@dataclass(frozen=True)
class TrainSettings(Settings):
    """One training run, complete."""

    seed: int = setting(1337, "initialisation and data order", minimum=0, maximum=2**63 - 1)
    model: ModelSettings = setting(ModelSettings(), "architecture")
    optimizer: OptimizerSettings = setting(OptimizerSettings(), "Muon and AdamW")
    schedule: ScheduleSettings = setting(ScheduleSettings(), "length and learning rate")
    data: DataSettings = setting(DataSettings(), "batches")
    snapshots: SnapshotSettings = setting(SnapshotSettings(), "what averaging gets")
    qat: QatSettings = setting(QatSettings(), "late quantization-aware training")
    compute: ComputeSettings = setting(ComputeSettings(), "device and processes")

    def check(self) -> None:
        if self.data.batch_sequences % self.compute.world_size:
            nodes = (
                f"compute.num_nodes = {self.compute.num_nodes} times " if self.compute.num_nodes > 1 else ""
            )
            raise ValueError(
                f"data.batch_tokens = {self.data.batch_tokens}: its {self.data.batch_sequences} sequences "
                f"must divide evenly over {nodes}compute.num_processes = {self.compute.num_processes}"
            )
