"""Settings of model, training, averaging and quantizer. Standard library only: these classes ship in the submission.

Every field carries its help, unit and bounds as metadata; `Settings` checks the bounds whenever one is made, by
pydantic, by `dataclasses.replace` or by hand, and says which field, which value and what is allowed.
"""

import dataclasses
import math
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from types import UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

S = TypeVar("S", bound="Settings")


def setting(
    default: Any,
    help: str,
    *,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
) -> Any:
    """A dataclass field: default, one line of help, unit, and inclusive bounds (`above` is exclusive)."""
    metadata = {"help": help, "unit": unit, "minimum": minimum, "maximum": maximum, "above": above}
    if isinstance(default, Settings):
        return field(default_factory=lambda: default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """Base: bounds checked at construction, unknown fields refused by pydantic."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            values = value if isinstance(value, tuple) else (value,)
            for number in values:
                if isinstance(number, bool) or not isinstance(number, (int, float)):
                    continue
                _check_bounds(item.name, number, item.metadata)
        self.check()

    def check(self) -> None:
        """Conditions between fields; raises ValueError."""


def _check_bounds(name: str, number: float, metadata: Any) -> None:
    minimum, maximum, above = metadata.get("minimum"), metadata.get("maximum"), metadata.get("above")
    if not math.isfinite(number):
        raise ValueError(f"{name} = {number}: must be a finite number")
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} = {number}: must be at least {minimum}")
    if above is not None and number <= above:
        raise ValueError(f"{name} = {number}: must be above {above}")
    if maximum is not None and number > maximum:
        raise ValueError(f"{name} = {number}: must be at most {maximum}")


def _exactly_one(settings: Settings, first: str, second: str) -> None:
    a, b = getattr(settings, first), getattr(settings, second)
    if (a is None) == (b is None):
        raise ValueError(f"{first} = {a} and {second} = {b}: give exactly one of them and leave the other empty")


@dataclass(frozen=True)
class ModelSettings(Settings):
    """The transformer. Defaults are the reference's (parameter-golf pull request 543)."""

    vocab_size: int = setting(1024, "rows of the tied embedding", unit="tokens", minimum=4, maximum=65_536)
    num_layers: int = setting(11, "blocks", minimum=1, maximum=256)
    model_dim: int = setting(512, "width of the residual stream", unit="dims", minimum=8, maximum=16_384)
    num_heads: int = setting(8, "query heads", minimum=1)
    num_kv_heads: int = setting(4, "key and value heads (GQA)", minimum=1)
    mlp_hidden: int = setting(1408, "hidden width of the relu² MLP", unit="dims", minimum=1)
    rope_dims: int = setting(16, "dims of each head that rotate; the rest pass through", unit="dims", minimum=0)
    rope_base: float = setting(10_000.0, "base of the rotary frequencies", above=0)
    q_gain_init: float = setting(1.5, "initial gain of each query head", above=0)
    logit_softcap: float = setting(30.0, "logits are cap·tanh(z/cap)", above=0)
    xsa_layers: int = setting(4, "last layers with exclusive self-attention; 0 turns it off", unit="layers", minimum=0)
    ln_scale: bool = setting(True, "scale the norm before layer i by 1/sqrt(i+1)")
    smear_gate: bool = setting(True, "mix each input with the one before it")
    smear_stops_at_bos: bool = setting(True, "do not mix across the start of a document")
    unet_skips: bool = setting(True, "second half of the layers adds the first half's outputs, weighted per dim")
    value_embedding_dim: int = setting(128, "width of the shared value embedding; 0 turns it off", unit="dims", minimum=0)
    value_embedding_layers: tuple[int, ...] = setting((9, 10), "layers that add the value embedding to v", minimum=0)
    value_embedding_scale_every_layer: bool = setting(
        False, "give layers without value embedding an (idle) scale too, as the reference does"
    )
    embedding_init_std: float = setting(0.005, "standard deviation of the initial token embedding", above=0)

    def check(self) -> None:
        if self.model_dim % self.num_heads:
            raise ValueError(f"model_dim = {self.model_dim}: must be a multiple of num_heads = {self.num_heads}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads = {self.num_kv_heads}: must divide num_heads = {self.num_heads}")
        if self.rope_dims % 2 or self.rope_dims > self.head_dim:
            raise ValueError(f"rope_dims = {self.rope_dims}: must be even and at most the head's {self.head_dim} dims")
        if self.xsa_layers > self.num_layers:
            raise ValueError(f"xsa_layers = {self.xsa_layers}: must be at most num_layers = {self.num_layers}")
        if self.value_embedding_dim and any(i >= self.num_layers for i in self.value_embedding_layers):
            raise ValueError(f"value_embedding_layers = {self.value_embedding_layers}: layers count from 0 to {self.num_layers - 1}")
        if len(set(self.value_embedding_layers)) != len(self.value_embedding_layers):
            raise ValueError(f"value_embedding_layers = {self.value_embedding_layers}: names a layer twice")
        if self.value_embedding_dim and not self.value_embedding_layers:
            raise ValueError("value_embedding_layers = (): name a layer, or turn it off with value_embedding_dim = 0")

    @property
    def head_dim(self) -> int:
        return self.model_dim // self.num_heads


@dataclass(frozen=True)
class OptimizerSettings(Settings):
    """Muon for matrices, AdamW for embeddings and for scalars and vectors."""

    muon_lr: float = setting(0.025, "learning rate of the matrices", minimum=0)
    muon_momentum: float = setting(0.99, "Nesterov momentum after its warm-up", minimum=0, maximum=0.9999)
    muon_momentum_start: float = setting(0.92, "Nesterov momentum at the first step", minimum=0, maximum=0.9999)
    muon_momentum_warmup_fraction: float | None = setting(
        0.25, "share of progress over which momentum rises", unit="fraction of progress", minimum=0, maximum=1
    )
    muon_momentum_warmup_steps: int | None = setting(None, "the same, counted in steps", unit="steps", minimum=0)
    muon_weight_decay: float = setting(0.04, "decoupled weight decay of the matrices", minimum=0)
    newton_schulz_steps: int = setting(5, "iterations of the orthogonalisation", minimum=1, maximum=20)
    embedding_lr: float = setting(0.035, "learning rate of the embeddings (AdamW)", minimum=0)
    scalar_lr: float = setting(0.025, "learning rate of gains, scales and gates (AdamW)", minimum=0)
    adam_beta1: float = setting(0.9, "AdamW's decay of the mean", minimum=0, maximum=0.9999)
    adam_beta2: float = setting(0.95, "AdamW's decay of the square", minimum=0, maximum=0.99999)
    adam_eps: float = setting(1e-8, "AdamW's denominator floor", above=0)
    adam_weight_decay: float = setting(0.04, "decoupled weight decay of the AdamW groups", minimum=0)
    grad_clip_norm: float = setting(0.3, "gradients are scaled down to this norm; 0 turns clipping off", minimum=0)
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
    warmdown_fraction: float | None = setting(
        0.5, "last share of progress over which the learning rate falls to 0", unit="fraction of progress", minimum=0, maximum=1
    )
    warmdown_steps: int | None = setting(
        None, "the same, in steps (of their measured length when time is the cap)", unit="steps", minimum=0
    )
    compile_warmup_steps: int = setting(0, "untimed passes that compile and leave all state untouched", unit="steps", minimum=0)

    def check(self) -> None:
        _exactly_one(self, "warmdown_fraction", "warmdown_steps")


@dataclass(frozen=True)
class DataSettings(Settings):
    """How shards become batches. The global batch is the same whatever the number of processes."""

    batch_tokens: int = setting(786_432, "tokens in one optimizer step over all processes", unit="tokens", minimum=1)
    sequence_length: int = setting(2048, "tokens in a training sequence", unit="tokens", minimum=2)
    micro_batch_sequences: int = setting(48, "sequences in one forward pass of one process", unit="sequences", minimum=1)
    order: Literal["shuffled", "sequential"] = setting("shuffled", "order of sequences: by seed, or as they lie in the shards")

    def check(self) -> None:
        if self.batch_tokens % self.sequence_length:
            raise ValueError(f"batch_tokens = {self.batch_tokens}: must be a multiple of sequence_length = {self.sequence_length}")

    @property
    def batch_sequences(self) -> int:
        return self.batch_tokens // self.sequence_length


@dataclass(frozen=True)
class SnapshotSettings(Settings):
    """When training writes weights for the averaging stage (tight SWA)."""

    start_lr_scale: float = setting(
        0.2, "first snapshot once the learning-rate scale is below this; 0: none", unit="fraction of the peak", minimum=0, maximum=1
    )
    every_fraction: float | None = setting(None, "progress between snapshots", unit="fraction of progress", above=0, maximum=1)
    every_steps: int | None = setting(50, "steps between snapshots", unit="steps", minimum=1)

    def check(self) -> None:
        _exactly_one(self, "every_fraction", "every_steps")


TensorFormat = Literal["int2", "int3", "int4", "int5", "int6", "int7", "int8", "fp16", "fp32"]
StoredFormat = Literal["int2", "int3", "int4", "int5", "int6", "int7", "int8", "fp16", "fp32", "coded"]


@dataclass(frozen=True)
class FormatRule(Settings):
    """Tensors whose name matches `pattern` (shell wildcards) are stored as `format`. The first match counts."""

    pattern: str = setting("*", "shell wildcards over tensor names")
    format: TensorFormat = setting("fp32", "how the tensor is stored")


DEFAULT_RULES = (
    FormatRule("tok_emb.weight", "fp16"),
    FormatRule("blocks.0.*.weight", "int8"),
    FormatRule("blocks.10.*.weight", "int8"),
    FormatRule("*.weight", "int6"),
    FormatRule("*", "fp32"),
)


QatGrid = Literal["of_quantizer", "round_to_nearest", "gptq_lite", "reference"]
GRID_OF_METHOD: dict[str, QatGrid] = {
    "round_to_nearest": "round_to_nearest",
    "gptq": "round_to_nearest",  # error feedback chooses other levels of the same grid
    "gptq_lite": "gptq_lite",
    "reference": "reference",
}


@dataclass(frozen=True)
class QatSettings(Settings):
    """Late quantization-aware training: straight-through rounding to the grid that the exporter will use."""

    start_lr_scale: float = setting(
        0.1, "on once the learning-rate scale is below this; 0: never", unit="fraction of the peak", minimum=0, maximum=1
    )
    rules: tuple[FormatRule, ...] = setting(DEFAULT_RULES, "format of each tensor, as in quantize.rules")
    grid: QatGrid = setting(
        "of_quantizer", "what it rounds to. of_quantizer: a run fills in that of quantize.method; training by itself takes round_to_nearest"
    )
    clip_candidates: tuple[float, ...] = setting((), "ratios that grid gptq_lite tries; filled in with it", above=0, maximum=1)

    def check(self) -> None:
        if (self.grid == "gptq_lite") != bool(self.clip_candidates):
            raise ValueError(
                f"clip_candidates = {self.clip_candidates} and grid = {self.grid}: gptq_lite needs ratios and no other grid takes any; "
                "leave grid at of_quantizer, which fills in both"
            )


@dataclass(frozen=True)
class ComputeSettings(Settings):
    """What computes. Part of the identity: another device, precision or split gives other bits."""

    device: Literal["cpu", "cuda"] = setting("cpu", "where the model runs")
    num_processes: int = setting(1, "torchrun processes on this machine", minimum=1, maximum=8)
    threads_per_process: int = setting(2, "CPU threads of each process", minimum=1, maximum=256)
    precision: Literal["bfloat16", "float32"] = setting("bfloat16", "matrix products; master weights stay float32")
    compile: bool = setting(False, "torch.compile the model")
    fused_kernels: bool = setting(False, "train with our own Triton kernels; needs a Hopper GPU and bfloat16")

    def check(self) -> None:
        if self.fused_kernels and (self.device != "cuda" or self.precision != "bfloat16"):
            raise ValueError(
                f"fused_kernels = true: they are for device = 'cuda' and precision = 'bfloat16', not {self.device!r} and "
                f"{self.precision!r}; leave fused_kernels false"
            )


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
        if self.data.batch_sequences % self.compute.num_processes:
            raise ValueError(
                f"data.batch_tokens = {self.data.batch_tokens}: its {self.data.batch_sequences} sequences must divide evenly "
                f"over compute.num_processes = {self.compute.num_processes}"
            )


@dataclass(frozen=True)
class AveragingSettings(Settings):
    """Which snapshots become the one model."""

    method: Literal["swa", "ema", "last"] = setting("swa", "uniform mean, exponential mean, or the last iterate alone")
    start_lr_scale: float = setting(
        0.2, "snapshots taken below this learning-rate scale take part", unit="fraction of the peak", minimum=0, maximum=1
    )
    every_nth: int = setting(1, "use every n-th snapshot of the window, counted from its end", minimum=1)
    ema_decay: float = setting(0.7, "weight kept from one snapshot to the next (method ema)", minimum=0, maximum=0.9999)


@dataclass(frozen=True)
class CalibrationSettings(Settings):
    """The text of the training split from which gptq and ecsq learn what an error in each weight costs."""

    num_sequences: int = setting(128, "sequences, drawn from the whole training split by the seed", unit="sequences", minimum=1)
    sequence_length: int = setting(256, "tokens in each", unit="tokens", minimum=2)
    batch_sequences: int = setting(16, "sequences in one forward pass", unit="sequences", minimum=1)
    damping: float = setting(0.01, "added to the Hessian's diagonal", unit="share of its mean", above=0, maximum=1)
    seed: int = setting(0, "which sequences, and the targets drawn from the model's predictions", minimum=0, maximum=2**63 - 1)
    threads: int = setting(2, "CPU threads", minimum=1, maximum=256)

    def sequences_in(self, num_tokens: int) -> int:
        """How many sequences a split of so many tokens has, each with the token after it."""
        return max(num_tokens - 1, 0) // self.sequence_length

    def check_text(self, num_tokens: int) -> None:
        """Raises ValueError, which begins with the setting's name, where a training split of so many tokens is too short."""
        there = self.sequences_in(num_tokens)
        if there < self.num_sequences:
            raise ValueError(
                f"calibration.num_sequences = {self.num_sequences}: the training split has {there} sequences of "
                f"{self.sequence_length} tokens; ask for fewer or shorter ones"
            )


@dataclass(frozen=True)
class EcsqSettings(Settings):
    """Entropy-constrained quantization: one number decides all steps, their shares come from the calibration text."""

    loss_nats: float = setting(
        0.001, "growth of the loss to spend, by the Fisher estimate; not used when fit.limit_bytes is set", unit="nats a token", above=0
    )
    measured_shares: bool = setting(
        False, "correct the estimate for each matrix by the divergence that quantizing it alone makes on training text"
    )
    floors: tuple[FormatRule, ...] = setting((), "matrices that may be no coarser, in mean square, than this integer format for each row")

    def check(self) -> None:
        for rule in self.floors:
            if not rule.format.startswith("int"):
                raise ValueError(f"floors: {rule.pattern} = {rule.format}: give an integer format, int2 to int8")


@dataclass(frozen=True)
class FitSettings(Settings):
    """Find the finest steps whose package is within a limit."""

    limit_bytes: int | None = setting(None, "bytes of script and blob together; empty: no fitting", unit="bytes", minimum=1)
    code_bytes: int | None = setting(None, "bytes of the script; empty: the pipeline measures it", unit="bytes", minimum=0)
    tolerance_fraction: float = setting(0.001, "stop once the package is this close below the limit", unit="share", above=0, maximum=0.5)


QuantizeMethod = Literal["gptq_lite", "round_to_nearest", "reference", "gptq", "ecsq"]
CALIBRATED_METHODS = ("gptq", "ecsq")


@dataclass(frozen=True)
class QuantizerSettings(Settings):
    """Post-training quantization. One symmetric integer grid per row with fp16 scales, or (ecsq) entropy-coded steps."""

    method: QuantizeMethod = setting(
        "gptq_lite",
        "round_to_nearest: the largest value of each row as it is; gptq_lite: clip search for each row; reference: the reference's own; "
        "gptq: error feedback on calibration text; ecsq: error feedback, steps by what errors cost, coded by rANS",
    )
    rules: tuple[FormatRule, ...] = setting(
        DEFAULT_RULES,
        "format of each tensor; the first match counts. ecsq codes whatever an integer format is given, with steps of its own",
    )
    clip_candidates: tuple[float, ...] = setting(
        (1.0, 0.99, 0.98, 0.97, 0.95, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7),
        "clip ratios of the row's largest value that gptq_lite tries",
        above=0,
        maximum=1,
    )
    zstd_level: int = setting(22, "compression of the container", minimum=1, maximum=22)
    calibration: CalibrationSettings = setting(CalibrationSettings(), "text for gptq and ecsq")
    ecsq: EcsqSettings = setting(EcsqSettings(), "what ecsq spends")
    fit: FitSettings = setting(FitSettings(), "settings that meet a byte limit (ecsq)")

    def check(self) -> None:
        if not self.clip_candidates:
            raise ValueError("clip_candidates = (): give at least one ratio, for example (1.0,)")
        if not self.rules or self.rules[-1].pattern != "*":
            raise ValueError('rules: the last pattern must be "*", so that every tensor has a format')
        if self.fit.limit_bytes is not None and self.method != "ecsq":
            raise ValueError(f"fit.limit_bytes = {self.fit.limit_bytes}: method {self.method} has no steps to fit; set method to ecsq")


@dataclass(frozen=True)
class ScoringSettings(Settings):
    """How a model is scored in bits per byte."""

    sequence_length: int = setting(2048, "context of an evaluation window", unit="tokens", minimum=2)
    stride: int = setting(64, "targets that each sliding window adds; 0 leaves sliding evaluation out", unit="tokens", minimum=0)
    batch_tokens: int = setting(65_536, "tokens in one forward pass of one process", unit="tokens", minimum=1)

    def check(self) -> None:
        if self.stride > self.sequence_length:
            raise ValueError(f"stride = {self.stride}: must be at most sequence_length = {self.sequence_length}")


@dataclass(frozen=True)
class Recipe(Settings):
    """All that decides a run from token shards to scores: what the program that ships repeats."""

    train: TrainSettings = setting(TrainSettings(), "training")
    averaging: AveragingSettings = setting(AveragingSettings(), "which snapshots become the one model")
    quantizer: QuantizerSettings = setting(QuantizerSettings(), "model to blob")
    scoring: ScoringSettings = setting(ScoringSettings(), "bits per byte of the blob")
    compute: ComputeSettings = setting(ComputeSettings(), "where the blob is scored")


def from_dict(cls: type[S], values: dict[str, Any]) -> S:
    """Settings from plain JSON types (the inverse of `dataclasses.asdict`). Raises ValueError for an unknown field."""
    hints = get_type_hints(cls)
    unknown = set(values) - {item.name for item in fields(cls)}
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {sorted(unknown)[0]!r}")
    return cls(**{name: _from_json(hints[name], value) for name, value in values.items()})


def _from_json(hint: Any, value: Any) -> Any:
    if get_origin(hint) in (Union, UnionType) and value is not None:
        hint = next(option for option in get_args(hint) if option is not type(None))
    if get_origin(hint) is tuple:
        return tuple(_from_json(get_args(hint)[0], item) for item in value)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value)  # type: ignore[type-var, arg-type]
    if hint is float and isinstance(value, int):
        return float(value)
    return value


def format_for(name: str, rules: tuple[FormatRule, ...]) -> TensorFormat:
    """Format of the tensor `name`: the first rule whose pattern matches. Raises ValueError if none does."""
    for rule in rules:
        if fnmatchcase(name, rule.pattern):
            return rule.format
    raise ValueError(f'no rule matches tensor {name!r}: end the rules with the pattern "*"')
