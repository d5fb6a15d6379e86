"""Peak memory and disk of each stage, in closed form from the settings.

Training keeps for each token and layer the tensors that autograd saves in `stages.core.model`. docs/plan.md
compares the sums with measured peaks.
"""

from dataclasses import dataclass

from schemas.compute_settings import ComputeSettings
from schemas.evaluate import EvaluateSpec
from schemas.model_settings import ModelSettings
from schemas.pipeline import PipelineSpec
from schemas.quantizer_settings import CalibratedSettings, Ecsq
from schemas.scoring_settings import ScoringSettings
from schemas.train_settings import TrainSettings
from stages.planning.counts import count_parameters, lora_parameters, num_snapshots

PROCESS_BYTES = 550 * 2**20
"""Main memory of a Python process that has imported PyTorch and computed something."""
_WORKSPACE_BYTES = 100 * 2**20  # of cuBLAS and cuDNN, which the allocator counts
_FLOAT, _HALF, _DOUBLE = 4, 2, 8
_MAX_PROBE_LOGITS = 2**24  # as in stages.auditing.probe
_MEASURED_SEQUENCES = 32  # as in stages.core.calibrated.with_text


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one process that trains: what stays the same, and what each sequence of a micro-batch adds."""

    fixed: int
    a_sequence: int

    def peak(self, micro_batch_sequences: int) -> int:
        return self.fixed + micro_batch_sequences * self.a_sequence

    def largest_micro_batch(self, available: int) -> int:
        """The most sequences that fit into `available` bytes; 0: not even one."""
        return max(0, (available - self.fixed) // self.a_sequence)


def training_memory(settings: TrainSettings) -> TrainingMemory:
    """The tensors of a training step in one process, its program left out.

    The peak is where the backward pass begins: all layers are kept, and the logits several times in float32.
    """
    counts = count_parameters(settings.model)
    matrices, rest = counts.blocks, counts.embeddings + counts.others
    copies = 2 * counts.total + matrices + 2 * rest  # weights and gradients, Muon's state, AdamW's two
    if settings.qat.start_lr_scale > 0:
        copies += matrices + counts.embeddings
    if settings.snapshots.ema_horizon is not None:
        copies += counts.total
    workspace = _WORKSPACE_BYTES if settings.compute.device == "cuda" else 0
    kept = _kept_a_token(settings.model, settings.compute, settings.data.sequence_length)
    return TrainingMemory(_FLOAT * copies + workspace, round(settings.data.sequence_length * kept))


def micro_batch(settings: TrainSettings) -> int:
    """Sequences in one forward pass of one process; fewer than asked for where its share has no more."""
    share = settings.data.batch_sequences // settings.compute.num_processes
    return min(settings.data.micro_batch_sequences, share)


def _kept_a_token(model: ModelSettings, compute: ComputeSettings, tokens: int) -> float:
    """Bytes a token at the peak of a step; `tokens` in a sequence."""
    dim, kv_dim = model.model_dim, model.num_kv_heads * model.head_dim
    passes = len(model.layer_order())
    exclusive = sum(layer >= model.num_layers - model.xsa_layers for layer in model.layer_order())
    kept: float = passes * _kept_a_layer(model, compute) + exclusive * (dim + kv_dim)
    if model.unet_skips:
        kept += (passes // 2) * dim * (3 if model.skip_gates else 1)
    if model.head_gate:
        kept += passes * dim
    if model.value_embedding_dim:
        kept += model.value_embedding_dim + 2 * kv_dim * len(model.value_embedding_layers)
    kept += 3 * dim  # the embedding, its norm and its mix with the token before
    if compute.device == "cpu" and tokens <= 1024:
        kept += passes * model.num_heads * tokens / 2  # the shares of attention in plain products
    width = _FLOAT if compute.precision == "float32" else _HALF
    # tanh and log-softmax are kept, and the gradients of both arise beside them.
    return width * kept + 4 * _FLOAT * model.vocab_size


def _kept_a_layer(model: ModelSettings, compute: ComputeSettings) -> int:
    """Numbers a token of a layer's pass: inputs of the two norms and their results, q, k and v before and
    after norm and rotation, attention's result, and the MLP's hidden layer.
    """
    dim, kv_dim, hidden = model.model_dim, model.num_kv_heads * model.head_dim, model.mlp_hidden
    leaky = model.leaky_slope != 0
    if compute.fused_kernels:  # one product for q, k and v; the square alone, or with a slope its root too
        return 8 * dim + 4 * kv_dim + (2 if leaky else 1) * hidden
    return 9 * dim + 3 * kv_dim + (3 if leaky else 2) * hidden


def scoring_memory(model: ModelSettings, scoring: ScoringSettings, compute: ComputeSettings) -> int:
    """Bytes of tensors of a process that scores: weights, a batch's activations, its logits three times."""
    width = _FLOAT if compute.precision == "float32" else _HALF
    longest = scoring.overlapping[0] if scoring.overlapping else 0
    rows = max(scoring.batch_tokens, scoring.sequence_length, longest)
    skips = len(model.layer_order()) // 2 if model.unet_skips else 0
    hidden = width * (model.model_dim * (8 + skips) + 2 * model.mlp_hidden)
    return _FLOAT * count_parameters(model).total + rows * (hidden + 3 * _FLOAT * model.vocab_size)


def evaluation_memory(model: ModelSettings, spec: EvaluateSpec) -> int:
    """The same of the stage `evaluate`. Test-time training keeps, for documents side by side, what autograd
    needs of their windows, the logits of their chunks, and weights, gradients and two states of their LoRAs.
    """
    scoring, lora = spec.scoring, spec.test_time_training
    plain = scoring_memory(model, scoring, spec.compute)
    if not lora.on:
        return plain
    length = scoring.sequence_length
    documents = min(lora.batch_documents, max(1, scoring.batch_tokens // length))
    kept = _kept_a_token(model, spec.compute, length) - 4 * _FLOAT * model.vocab_size
    logits = lora.chunk_tokens * 4 * _FLOAT * model.vocab_size
    loras = 4 * _FLOAT * lora_parameters(model, lora)
    weights = _FLOAT * count_parameters(model).total
    return max(plain, weights + documents * round(length * kept + logits + loras))


def quantizing_memory(spec: PipelineSpec, quantizer: object) -> int:
    """Bytes of main memory: the model several times, and of a quantizer that reads text the Hessians (C, C)
    of all matrices in float64, for ecsq their factors too, and predictions on text in float32.
    """
    model = spec.train.model
    total = count_parameters(model).total
    bytes_ = PROCESS_BYTES + total * (4 * _FLOAT + 3)
    if not isinstance(quantizer, CalibratedSettings):
        return bytes_
    calibration = quantizer.calibration
    dim = model.model_dim
    squares = model.num_layers * (5 * dim**2 + model.mlp_hidden**2) + 2 * dim**2
    squares += 2 * model.value_embedding_dim**2
    bytes_ += _DOUBLE * squares * (2 if isinstance(quantizer, Ecsq) else 1)
    float32 = ComputeSettings(precision="float32")
    in_a_batch = calibration.batch_sequences * calibration.sequence_length
    bytes_ += round(in_a_batch * _kept_a_token(model, float32, calibration.sequence_length))
    checked = max(1, _MEASURED_SEQUENCES // calibration.batch_sequences) * in_a_batch
    return bytes_ + PROCESS_BYTES + 2 * _FLOAT * checked * model.vocab_size


def audit_memory(spec: PipelineSpec) -> int:
    """Bytes of main memory: both models, and what they predict for the text on which the gap is measured."""
    model = spec.train.model
    kept = 3 * min(spec.audit.gap_tokens * model.vocab_size, _MAX_PROBE_LOGITS)
    return PROCESS_BYTES + _FLOAT * (8 * count_parameters(model).total + kept + 2 * _MAX_PROBE_LOGITS)


def training_disk(settings: TrainSettings, steps: int, keep_checkpoints: int) -> int:
    """Bytes: snapshots, the last weights, the mean of the steps, checkpoints and one more in the making."""
    counts = count_parameters(settings.model)
    ema = settings.snapshots.ema_horizon is not None
    weights = _FLOAT * counts.total
    states = _FLOAT * (counts.blocks + 2 * (counts.embeddings + counts.others))
    checkpoint = weights * (2 if ema else 1) + states
    kept = num_snapshots(settings.schedule, settings.snapshots, steps) + 1 + int(ema)
    return kept * weights + (keep_checkpoints + 1) * checkpoint
