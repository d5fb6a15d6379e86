"""Counts that follow from settings alone: parameters, operations, steps and scored tokens.

In closed form, because importing PyTorch takes longer than a whole plan. The tests compare the counts with
the real model.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

from schemas.lora_settings import LoraSettings
from schemas.model_settings import ModelSettings
from schemas.scoring_settings import ScoringSettings
from schemas.train_settings import ScheduleSettings, SnapshotSettings, TrainSettings
from stages.core.schedule import Clock, lr_scale_at, snapshot_due


@dataclass(frozen=True)
class Parameters:
    """Parameters of a model: the matrices of its blocks, its embeddings and head, and all others."""

    blocks: int
    embeddings: int
    others: int

    @property
    def total(self) -> int:
        return self.blocks + self.embeddings + self.others


def count_parameters(model: ModelSettings) -> Parameters:
    """The parameters that `stages.core.model.GPT` has for these settings."""
    dim, layers = model.model_dim, model.num_layers
    kv_dim = model.num_kv_heads * model.head_dim
    blocks = layers * (2 * dim * dim + 2 * kv_dim * dim + 2 * dim * model.mlp_hidden)
    embeddings = model.vocab_size * dim * (1 if model.tied_head else 2)
    others = layers * (4 * dim + model.num_heads)  # attn_scale, mlp_scale, resid_mix, q_gain
    if model.head_gate:
        others += layers * model.num_heads * model.head_gate_dims
    pairs = len(model.layer_order()) // 2
    others += pairs * dim * (int(model.unet_skips) + int(model.skip_gates))
    if model.parallel_residuals == "two_lanes":
        others += 6 * (layers - model.parallel_first_layer)
    if model.smear_gate:
        others += model.smear_dims + 1 if model.smear_form == "by_input" else dim
    if model.value_embedding_dim:
        embeddings += model.vocab_size * model.value_embedding_dim
        every_layer = model.value_embedding_scale_every_layer
        others += layers if every_layer else len(model.value_embedding_layers)
        blocks += kv_dim * model.value_embedding_dim
    return Parameters(blocks, embeddings, others)


def lora_parameters(model: ModelSettings, lora: LoraSettings) -> int:
    """Parameters of the LoRAs of one document, as `stages.core.lora.DocumentLoras` has them."""
    dim, kv_dim, passes = model.model_dim, model.num_kv_heads * model.head_dim, len(model.layer_order())
    rows = {"k": passes * kv_dim, "v": passes * kv_dim, "head": model.vocab_size}
    columns = {"head": dim}
    return lora.rank * sum(
        rows.get(target, passes * dim) + columns.get(target, passes * dim) for target in lora.targets
    )


def operations_a_token(model: ModelSettings, sequence_length: int, looped_share: float = 1.0) -> float:
    """Floating-point operations of a forward pass for each token: 2 a parameter of a matrix product, and
    2·T·D a layer for causal attention, T the sequence length.

    `looped_share`: share of the passes in which `loop_passes` apply. A training step takes three times as
    many.
    """
    passes = len(model.layer_order()) / model.num_layers
    passes = 1 + (passes - 1) * looped_share
    head = model.vocab_size * model.model_dim
    attention = 2 * model.num_layers * sequence_length * model.model_dim
    return 2.0 * (count_parameters(model).blocks * passes + head) + attention * passes


def training_operations(settings: TrainSettings, tokens: int) -> float:
    """Operations of training on so many tokens, all processes together."""
    looped = 1 - settings.schedule.loop_start_fraction
    data, starts = settings.data, (0.0, *settings.data.context_ends, 1.0)
    per_token = sum(
        (end - start) * operations_a_token(settings.model, data.context_at(start), looped)
        for start, end in pairwise(starts)
    )
    return 3.0 * tokens * per_token


def scored_tokens(num_tokens: int, scoring: ScoringSettings, stride: int) -> int:
    """Tokens that all windows `stride` apart read; windows inside documents count as over the stream."""
    length = scoring.sequence_length
    windows = 1 + max(0, -(-(num_tokens - 1 - length) // stride))
    return windows * min(length, num_tokens)


def scoring_operations(model: ModelSettings, num_tokens: int, scoring: ScoringSettings, stride: int) -> float:
    """Operations of scoring a validation split of so many tokens; 0 for the stride 0."""
    if not stride:
        return 0.0
    return scored_tokens(num_tokens, scoring, stride) * operations_a_token(model, scoring.sequence_length)


def long_context(scoring: ScoringSettings) -> ScoringSettings | None:
    """The windows of the second score, as those of a score without attention window; None without it."""
    if scoring.overlapping is None:
        return None
    length, stride = scoring.overlapping
    return replace(scoring, sequence_length=length, stride=stride, attention_window=0)


def long_context_operations(model: ModelSettings, num_tokens: int, scoring: ScoringSettings) -> float:
    """Operations of the second score, or 0. With an attention window a query meets twice as many keys."""
    windows = long_context(scoring)
    if windows is None:
        return 0.0
    met = 2 * scoring.attention_window or windows.sequence_length
    return scored_tokens(num_tokens, windows, windows.stride) * operations_a_token(model, met)


def learning_operations(
    model: ModelSettings, num_tokens: int, scoring: ScoringSettings, lora: LoraSettings
) -> float:
    """Operations of test-time training, and of the same windows without: a window's forward pass, and twice
    as many backward. All windows count as whole ones.
    """
    return 4 * scoring_operations(model, num_tokens, scoring, lora.chunk_tokens) if lora.on else 0.0


def num_snapshots(schedule: ScheduleSettings, snapshots: SnapshotSettings, steps: int) -> int:
    """Snapshots of a training of so many steps of equal length."""
    if snapshots.start_lr_scale == 0:
        return 0
    # At most `steps` of them are taken: under a cap of seconds the clock runs as fast as the steps.
    second = (schedule.step_seconds or 0.0) / steps
    clocks = [Clock(step, step * second) for step in range(steps + 1)]
    return sum(
        snapshot_due(before, after, lr_scale_at(before, schedule), schedule, snapshots)
        for before, after in zip(clocks, clocks[1:], strict=False)
    )
