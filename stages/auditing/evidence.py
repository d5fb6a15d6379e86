"""Evidence of the audit: the records of a run, and measurements on its files."""

from dataclasses import dataclass, field

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from schemas.pipeline import PipelineSpec
from schemas.results import RunResults
from schemas.techniques import TECHNIQUES
from schemas.train import ParameterChange
from stages.auditing.probe import (
    Effect,
    OwnValue,
    Probe,
    Windows,
    choose_windows,
    effect_without,
    load_model,
    own_value,
    probe,
    rotated_dims,
)
from stages.core.bits_per_byte import TokenBytes, count_bytes, load_token_bytes
from stages.core.blob.packing import unpack
from stages.core.loader import TokenStream
from stages.core.model import Block
from stages.core.shards import BOS_ID
from stages.store.workspace import Workspace
from stages.training.metrics import Columns

LEARNED_SHARE = 1e-3
"""A tensor whose `learned_rms` is below this share of its initial rms counts as one that did not learn."""

_COUNTED_AT_ONCE = 2**22


@dataclass(frozen=True)
class ValidationCount:
    """The validation shards counted token by token, without windows."""

    num_targets: int
    num_bytes: int
    bos_positions: np.ndarray  # (documents,) int64

    @property
    def num_bos_targets(self) -> int:
        return int((self.bos_positions > 0).sum())


@dataclass(frozen=True)
class ShippedModel:
    """The decoded blob, tested on a few windows with and without each technique of the model (by key)."""

    windows: Windows
    whole: Probe
    effects: dict[str, Effect]
    own_value: OwnValue | None
    rotated_dims: int
    norm_scales: tuple[float, ...]
    largest_raw_logit: float
    state: dict[str, Tensor]
    errors: dict[str, float]  # tensor -> rms of shipped minus merged


@dataclass(frozen=True)
class Evidence:
    """The run's settings and results, the metrics of its training steps (each column (steps,)), and the
    audit's own measurements.
    """

    spec: PipelineSpec
    results: RunResults
    metrics: Columns
    counted: ValidationCount
    shipped: ShippedModel
    changes: dict[str, ParameterChange] = field(default_factory=dict)


def gather(spec: PipelineSpec, results: RunResults, metrics: Columns, work: Workspace) -> Evidence:
    """Read and measure. Raises BlobError for a blob that cannot be decoded."""
    tokens = TokenStream([work.read(ref) for ref in results.tokenized.val_shards])
    table = load_token_bytes(work.read(results.tokenized.tokenizer))
    counted = count_validation(tokens, table)
    state, _ = unpack(work.read(results.package.blob).read_bytes())
    merged = load_file(work.read(results.merged.weights))
    windows = choose_windows(tokens, table, counted.bos_positions, spec.evaluate.scoring.sequence_length)
    shipped = _try_out(spec, state, merged, windows)
    changes = {change.name: change for change in results.trained.changes}
    return Evidence(spec, results, metrics, counted, shipped, changes)


def count_validation(tokens: TokenStream, table: TokenBytes) -> ValidationCount:
    """Count targets, their bytes and the positions of BOS directly on the tokens."""
    num_bytes, positions = 0, []
    for start in range(0, len(tokens), _COUNTED_AT_ONCE):
        part = tokens.read(start, min(_COUNTED_AT_ONCE + 1, len(tokens) - start))
        num_bytes += int(count_bytes(table, part[:-1], part[1:]).sum())
        positions.append(start + np.flatnonzero(part[:_COUNTED_AT_ONCE] == BOS_ID))
    return ValidationCount(len(tokens) - 1, num_bytes, np.concatenate(positions))


def learned(change: ParameterChange) -> bool:
    """Whether gradients moved the tensor, beyond what weight decay alone does."""
    return change.learned_rms > LEARNED_SHARE * change.initial_rms


def _try_out(
    spec: PipelineSpec, state: dict[str, Tensor], merged: dict[str, Tensor], windows: Windows
) -> ShippedModel:
    settings = spec.train.model
    model = load_model(settings, state)
    whole = probe(model, windows)
    without = {technique.key: technique.without(spec).train.model for technique in TECHNIQUES}
    share = (whole.logits.abs().max() / settings.logit_softcap).clamp(max=1 - 1e-6)
    return ShippedModel(
        windows=windows,
        whole=whole,
        effects={
            key: effect_without(other, state, whole, windows)
            for key, other in without.items()
            if other != settings
        },
        own_value=own_value(model, windows),
        rotated_dims=rotated_dims(model, windows),
        norm_scales=tuple(block.norm_scale for block in model.modules() if isinstance(block, Block)),
        largest_raw_logit=settings.logit_softcap * float(torch.atanh(share)),
        state=state,
        errors={
            name: float((tensor - state[name]).double().square().mean().sqrt())
            for name, tensor in merged.items()
            if name in state
        },
    )
