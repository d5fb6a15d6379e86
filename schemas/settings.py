"""Settings of model, training, averaging and scoring.

Standard library only: these classes ship in the submission.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from schemas.settings_base import Settings, setting
from schemas.tensor_formats import DEFAULT_RULES, FormatRule

QatGrid = Literal["of_quantizer", "round_to_nearest", "gptq_lite", "reference"]


def _exactly_one(settings: Settings, first: str, second: str) -> None:
    a, b = getattr(settings, first), getattr(settings, second)
    if (a is None) == (b is None):
        raise ValueError(
            f"{first} = {a} and {second} = {b}: give exactly one of them and leave the other empty"
        )


@dataclass(frozen=True)
class ModelSettings(Settings):
    """The transformer. Defaults are the reference's (parameter-golf pull request 543)."""

    vocab_size: int = setting(1024, "rows of the token embedding", unit="tokens", minimum=4, maximum=65_536)
    num_layers: int = setting(11, "blocks", minimum=1, maximum=256)
    model_dim: int = setting(512, "width of the residual stream", unit="dims", minimum=8, maximum=16_384)
    num_heads: int = setting(8, "query heads", minimum=1)
    num_kv_heads: int = setting(4, "key and value heads (GQA)", minimum=1)
    mlp_hidden: int = setting(1408, "hidden width of the relu² MLP", unit="dims", minimum=1)
    leaky_slope: float = setting(
        0.0, "slope of the MLP's relu² below 0 before it is squared; 0 is relu²", minimum=0, maximum=1
    )
    rope_dims: int = setting(
        16, "dims of each head that rotate; the rest pass through", unit="dims", minimum=0
    )
    rope_base: float = setting(10_000.0, "base of the rotary frequencies", above=0)
    q_gain_init: float = setting(1.5, "initial gain of each query head", above=0)
    logit_softcap: float = setting(30.0, "logits are cap·tanh(z/cap)", above=0)
    xsa_layers: int = setting(
        4, "last layers with exclusive self-attention; 0 turns it off", unit="layers", minimum=0
    )
    ln_scale: bool = setting(True, "scale the norm before layer i by 1/sqrt(i+1)")
    smear_gate: bool = setting(True, "mix each input with the one before it")
    smear_stops_at_bos: bool = setting(True, "do not mix across the start of a document")
    unet_skips: bool = setting(
        True, "second half of the layers adds the first half's outputs, weighted per dim"
    )
    value_embedding_dim: int = setting(
        128, "width of the shared value embedding; 0 turns it off", unit="dims", minimum=0
    )
    value_embedding_layers: tuple[int, ...] = setting(
        (9, 10), "layers that add the value embedding to v", minimum=0
    )
    value_embedding_scale_every_layer: bool = setting(
        False, "give layers without value embedding an (idle) scale too, as the reference does"
    )
    embedding_init_std: float = setting(0.005, "standard deviation of the initial token embedding", above=0)
    loop_passes: int = setting(
        1,
        "times that loop_layers run one after another with the same weights; 1 turns loops off",
        minimum=1,
        maximum=16,
    )
    loop_layers: tuple[int, ...] = setting((3, 4, 5), "neighbouring layers that a loop repeats", minimum=0)
    skip_gates: bool = setting(
        False, "skips are interpolated with the stream by a gate per dim, and not added to it"
    )
    parallel_residuals: Literal["off", "one_lane", "two_lanes"] = setting(
        "off", "attention and MLP of a layer read the same input, or a stream each"
    )
    parallel_first_layer: int = setting(7, "first layer with parallel residuals", minimum=0)
    head_gate: bool = setting(False, "each head's output is scaled by a gate that reads the layer's input")
    head_gate_dims: int = setting(
        12, "first dims of its input that a head's gate reads", unit="dims", minimum=1
    )
    head_gate_scale: float = setting(0.5, "factor before the sigmoid of a head's gate", above=0)
    smear_form: Literal["blend", "by_input"] = setting(
        "blend", "blend: a fixed share per dim; by_input: one share for each token, by its own embedding"
    )
    smear_dims: int = setting(
        12, "first dims of the embedding that smear_form by_input reads", unit="dims", minimum=1
    )
    tied_head: bool = setting(True, "the token embedding is the output head too")

    def check(self) -> None:
        if self.model_dim % self.num_heads:
            raise ValueError(
                f"model_dim = {self.model_dim}: must be a multiple of num_heads = {self.num_heads}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads = {self.num_kv_heads}: must divide num_heads = {self.num_heads}")
        if self.rope_dims % 2 or self.rope_dims > self.head_dim:
            raise ValueError(
                f"rope_dims = {self.rope_dims}: must be even and at most the head's {self.head_dim} dims"
            )
        if self.xsa_layers > self.num_layers:
            raise ValueError(
                f"xsa_layers = {self.xsa_layers}: must be at most num_layers = {self.num_layers}"
            )
        if self.value_embedding_dim and any(i >= self.num_layers for i in self.value_embedding_layers):
            raise ValueError(
                f"value_embedding_layers = {self.value_embedding_layers}: layers count from 0 to "
                f"{self.num_layers - 1}"
            )
        if len(set(self.value_embedding_layers)) != len(self.value_embedding_layers):
            raise ValueError(f"value_embedding_layers = {self.value_embedding_layers}: names a layer twice")
        if self.value_embedding_dim and not self.value_embedding_layers:
            raise ValueError(
                "value_embedding_layers = (): name a layer, or turn it off with value_embedding_dim = 0"
            )
        self._check_loops()
        self._check_lanes()
        if self.skip_gates and not self.unet_skips:
            raise ValueError("skip_gates = True: there are no skips; set unet_skips = true")
        for on, name in (
            (self.head_gate, "head_gate_dims"),
            (self.smear_gate and self.smear_form == "by_input", "smear_dims"),
        ):
            if on and getattr(self, name) > self.model_dim:
                raise ValueError(
                    f"{name} = {getattr(self, name)}: must be at most model_dim = {self.model_dim}"
                )

    def _check_loops(self) -> None:
        layers = self.loop_layers
        if self.loop_passes == 1:
            return
        if not layers or layers != tuple(range(layers[0], layers[0] + len(layers))):
            raise ValueError(f"loop_layers = {layers}: name neighbouring layers in order, such as 3, 4, 5")
        if layers[-1] >= self.num_layers:
            raise ValueError(f"loop_layers = {layers}: layers count from 0 to {self.num_layers - 1}")

    def _check_lanes(self) -> None:
        first = self.parallel_first_layer
        if self.parallel_residuals == "off":
            return
        if first >= self.num_layers:
            raise ValueError(
                f"parallel_first_layer = {first}: must be below num_layers = {self.num_layers}, or "
                "parallel_residuals off"
            )
        if self.parallel_residuals == "one_lane":
            return
        if self.loop_passes > 1 and first <= self.loop_layers[-1]:
            raise ValueError(
                f"parallel_first_layer = {first}: two lanes begin after the last looped layer, "
                f"{self.loop_layers[-1]}"
            )
        if self.unet_skips and first < self.num_layers // 2:
            raise ValueError(
                f"parallel_first_layer = {first}: two lanes begin in the second half of the layers, from "
                f"{self.num_layers // 2}, because skips leave from one stream"
            )

    @property
    def head_dim(self) -> int:
        return self.model_dim // self.num_heads

    def layer_order(self, looped: bool = True) -> tuple[int, ...]:
        """Layers in the order in which they run: each once, or looped with `loop_layers` `loop_passes`
        times.
        """
        layers = tuple(range(self.num_layers))
        if not looped or self.loop_passes == 1:
            return layers
        first, last = self.loop_layers[0], self.loop_layers[-1]
        return layers[:first] + self.loop_layers * self.loop_passes + layers[last + 1 :]

    def as_metadata(self) -> dict[str, Any]:
        """Plain types for a blob. What the first blobs did not know is left out where it is off, so that
        their bytes stay.
        """
        values = asdict(self)
        return {
            item.name: values[item.name]
            for item in fields(self)
            if item.name not in _NOT_IN_FIRST_BLOBS or values[item.name] != item.default
        }


_NOT_IN_FIRST_BLOBS = frozenset(
    (
        "leaky_slope", "loop_passes", "loop_layers", "skip_gates", "parallel_residuals",
        "parallel_first_layer", "head_gate", "head_gate_dims", "head_gate_scale", "smear_form",
        "smear_dims", "tied_head",
    )
)  # fmt: skip


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


Windows = Literal["stream", "documents"]
"""Whether a window of text follows the stream of tokens or the documents in it."""


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
class QatSettings(Settings):
    """Late quantization-aware training: straight-through rounding to the grid that the exporter will use."""

    start_lr_scale: float = setting(
        0.1,
        "on once the learning-rate scale is below this; 0: never",
        unit="fraction of the peak",
        minimum=0,
        maximum=1,
    )
    rules: tuple[FormatRule, ...] = setting(DEFAULT_RULES, "format of each tensor, as in quantize.rules")
    grid: QatGrid = setting(
        "of_quantizer",
        (
            "what it rounds to. of_quantizer: a run fills in that of quantize.method; training by "
            "itself takes round_to_nearest"
        ),
    )
    clip_candidates: tuple[float, ...] = setting(
        (), "ratios that grid gptq_lite tries; filled in with it", above=0, maximum=1
    )

    def check(self) -> None:
        if (self.grid == "gptq_lite") != bool(self.clip_candidates):
            raise ValueError(
                f"clip_candidates = {self.clip_candidates} and grid = {self.grid}: gptq_lite needs ratios "
                "and no other grid takes any; leave grid at of_quantizer, which fills in both"
            )


@dataclass(frozen=True)
class ComputeSettings(Settings):
    """What computes. Part of the identity: another device, precision or split gives other bits.

    `auto` is resolved before anything is keyed or computed: stages.store.machine.resolve_precision.
    """

    device: Literal["cpu", "cuda"] = setting("cpu", "where the model runs")
    num_processes: int = setting(1, "processes on each machine", minimum=1, maximum=8)
    num_nodes: int = setting(1, "machines that train together", minimum=1, maximum=256, later=True)
    threads_per_process: int = setting(2, "CPU threads of each process", minimum=1, maximum=256)
    precision: Literal["auto", "bfloat16", "float32"] = setting(
        "auto",
        (
            "matrix products; master weights stay float32. auto: bfloat16 on a GPU and on a CPU with "
            "instructions for it, else float32"
        ),
    )
    compile: bool = setting(False, "torch.compile the model")
    fused_kernels: bool = setting(False, "train with our own Triton kernels; needs a Hopper GPU and bfloat16")

    @property
    def world_size(self) -> int:
        """Processes on all machines."""
        return self.num_nodes * self.num_processes

    def check(self) -> None:
        if self.fused_kernels and (self.device != "cuda" or self.precision == "float32"):
            raise ValueError(
                "fused_kernels = true: they are for device = 'cuda' and precision = 'bfloat16', not "
                f"{self.device!r} and {self.precision!r}; leave fused_kernels false"
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
        if self.data.batch_sequences % self.compute.world_size:
            nodes = (
                f"compute.num_nodes = {self.compute.num_nodes} times " if self.compute.num_nodes > 1 else ""
            )
            raise ValueError(
                f"data.batch_tokens = {self.data.batch_tokens}: its {self.data.batch_sequences} sequences "
                f"must divide evenly over {nodes}compute.num_processes = {self.compute.num_processes}"
            )


@dataclass(frozen=True)
class AveragingSettings(Settings):
    """Which snapshots become the one model."""

    method: Literal["swa", "ema", "ema_of_steps", "last"] = setting(
        "swa",
        (
            "swa: uniform mean of snapshots; ema: their exponential mean; ema_of_steps: the mean that "
            "train.snapshots.ema_horizon kept in training; last: the last iterate alone"
        ),
    )
    start_lr_scale: float = setting(
        0.2,
        "snapshots taken below this learning-rate scale take part",
        unit="fraction of the peak",
        minimum=0,
        maximum=1,
    )
    every_nth: int = setting(1, "use every n-th snapshot of the window, counted from its end", minimum=1)
    ema_decay: float = setting(
        0.7, "weight kept from one snapshot to the next (method ema)", minimum=0, maximum=0.9999
    )


@dataclass(frozen=True)
class ScoringSettings(Settings):
    """How a model is scored in bits per byte."""

    sequence_length: int = setting(2048, "context of an evaluation window", unit="tokens", minimum=2)
    stride: int = setting(
        64, "targets that each sliding window adds; 0 leaves sliding evaluation out", unit="tokens", minimum=0
    )
    batch_tokens: int = setting(65_536, "tokens in one forward pass of one process", unit="tokens", minimum=1)
    windows: Windows = setting(
        "stream",
        (
            "stream: windows cross from document to document; documents: each begins with a document or "
            "inside it, and sees no other. Figures of the two are not comparable"
        ),
    )
    attention_window: int = setting(
        0,
        (
            "instead of sliding windows, one pass over long windows in which each token attends to so many "
            "tokens up to itself; needs stride 0"
        ),
        unit="tokens",
        minimum=0,
    )

    @property
    def overlapping(self) -> tuple[int, int] | None:
        """Length and stride of the windows of the second score; None where there is none.

        Of a pass with an attention window, a window repeats so many tokens of the one before, unscored: at
        least a 16th of it. In longer ones float32 would tell the angles of rotary positions apart worse.
        """
        if self.attention_window:
            reach = self.attention_window
            length = max(2 * reach, min(16 * reach, self.batch_tokens))
            return length, length - reach
        return (self.sequence_length, self.stride) if self.stride else None

    def check(self) -> None:
        if self.attention_window and self.stride:
            raise ValueError(
                f"attention_window = {self.attention_window}: it takes the place of sliding windows; set "
                f"stride = 0, which is {self.stride}"
            )
        if self.stride > self.sequence_length:
            raise ValueError(
                f"stride = {self.stride}: must be at most sequence_length = {self.sequence_length}"
            )
