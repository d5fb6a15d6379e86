"""The gap between the shipped and the merged model by cause, measured: clipping, rounding of each tensor
group, fp16 scales.

From the merged to the shipped weights there are three steps, each a set of weights that is scored:

    merged → clipped: every weight beyond its row's outermost level takes that level, nothing is rounded
    clipped → rounded: to the nearest level, with row scales as they were before they became fp16;
        one tensor group at a time, and all together
    rounded → shipped: the blob, whose scales are fp16

What all groups rounded together cost beyond the sum of each alone is their interaction, so the parts sum to
the whole. Nothing is chosen by this. Shape legend: N sequences, T tokens, V vocabulary, R rows, C columns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from schemas.gap import GapByCause, GapPart
from schemas.model_settings import ModelSettings
from schemas.quantizer_settings import QuantizerSettings, Reference
from schemas.runtime import Progress
from stages.auditing.probe import MAX_PROBE_LOGITS
from stages.core.bits_per_byte import TokenBytes, count_bytes
from stages.core.calibrated.table import QUANTIZERS, MatrixQuantizer
from stages.core.calibrated.whole_model import quantize_state
from stages.core.loader import TokenStream
from stages.core.model import GPT
from stages.core.quantizers.grid import max_level
from stages.core.quantizers.quantized import QuantizedTensor, bits_of
from stages.quantizing.tensor_groups import group_of

State = dict[str, Tensor]

_TOKENS_AT_ONCE = 4_096
# A row's largest weight over its own step is the outermost level only to float32's last bit.
_CLIP_SLACK = 1 + 1e-6
_MIN_SEQUENCES = 2  # one has no standard error


@dataclass(frozen=True)
class Sequences:
    """`ids` (N, T + 1) int64, inputs and targets in one, and the UTF-8 bytes that each row's targets
    stand for, int64 (N,).
    """

    ids: Tensor
    num_bytes: np.ndarray


@dataclass(frozen=True)
class Scored:
    """`nats` float64 (N,): each sequence's nll; where they were kept, float32 log-probabilities (·, V) of
    every target's place; and the mean divergence, nats a token, from each model that it was compared
    with.
    """

    nats: np.ndarray
    predictions: list[Tensor]
    divergences: list[float]


def choose_sequences(
    tokens: TokenStream, table: TokenBytes, num_tokens: int, length: int
) -> Sequences | None:
    """Windows of `length` tokens without overlap, evenly spread, `num_tokens` in all at most; None when
    there is no room for two.

    A large vocabulary takes fewer: predictions stay within MAX_PROBE_LOGITS numbers.
    """
    there = (len(tokens) - 1) // length
    count = min(there, min(num_tokens, MAX_PROBE_LOGITS // len(table.base_bytes)) // length)
    if count < _MIN_SEQUENCES:
        return None
    starts = np.linspace(0, there - 1, count).astype(np.int64) * length
    rows = np.stack([tokens.read(int(start), length + 1) for start in starts])
    return Sequences(torch.from_numpy(rows), count_bytes(table, rows[:, :-1], rows[:, 1:]).sum(axis=1))


class _Measurement:
    """Scores sets of weights one after another on the same sequences, and says how far it is."""

    def __init__(
        self, model: ModelSettings, sequences: Sequences, total_passes: int, progress: Progress
    ) -> None:
        self._network, self._sequences = GPT(model).eval(), sequences
        self._passes, self._total_passes, self._progress = 0, total_passes, progress

    def score(self, state: State, *against: Scored, keep: bool = False) -> Scored:
        self._network.load_state_dict(state)
        scored = _score(self._network, self._sequences.ids, against, keep)
        self._passes += 1
        self._progress(self._passes, self._total_passes, "models, gap by cause")
        return scored

    def part(self, cause: str, nats: np.ndarray, divergence: float | None = None) -> GapPart:
        """`nats` (N,) float64: what the cause adds to the nll of each sequence."""
        bpb, error = ratio_with_error(nats / math.log(2), self._sequences.num_bytes)
        return GapPart(cause=cause, bpb=bpb, standard_error_bpb=error, divergence_nats=divergence)


def gap_by_cause(
    model: ModelSettings,
    merged: State,
    shipped: State,
    settings: QuantizerSettings,
    sequences: Sequences,
    progress: Progress = lambda done, total, unit: None,
) -> GapByCause:
    """The parts on `sequences`, in float32. `shipped` is the blob's state, made by `settings` from `merged`.

    Raises ValueError as `quantize_state` does.
    """
    clipped, rounded = take_apart(merged, shipped, settings)
    groups = _changed_groups(clipped, rounded)
    clips, fp16_scales = _differ(clipped, merged), _differ(rounded, shipped)
    measurement = _Measurement(model, sequences, 2 + len(groups) + clips + fp16_scales, progress)
    of_merged = measurement.score(merged, keep=True)
    of_clipped = measurement.score(clipped, of_merged, keep=True) if clips else of_merged
    alone = {
        group: measurement.score({**clipped, **tensors}, of_clipped) for group, tensors in groups.items()
    }
    of_rounded = measurement.score(rounded, keep=True) if fp16_scales else None
    of_shipped = measurement.score(shipped, of_merged, *([of_rounded] if of_rounded else []))
    of_rounded = of_rounded or of_shipped

    part, rounding = measurement.part, np.zeros_like(of_merged.nats)
    parts = []
    for group, scored in alone.items():
        rounding += scored.nats - of_clipped.nats
        parts.append(part(f"rounding, {group}", scored.nats - of_clipped.nats, scored.divergences[0]))
    parts.append(part("rounding, interaction of the groups", of_rounded.nats - of_clipped.nats - rounding))
    if isinstance(QUANTIZERS[type(settings)], MatrixQuantizer):
        by_clips = of_clipped.divergences[0] if clips else 0.0
        by_scales = of_shipped.divergences[1] if fp16_scales else 0.0
        parts.insert(0, part("clipping", of_clipped.nats - of_merged.nats, by_clips))
        parts.append(part("fp16 scales", of_shipped.nats - of_rounded.nats, by_scales))
    return GapByCause(
        total=part("quantized − merged", of_shipped.nats - of_merged.nats, of_shipped.divergences[0]),
        parts=tuple(parts),
        num_sequences=len(sequences.ids),
        sequence_length=sequences.ids.size(1) - 1,
        note=QUANTIZERS[type(settings)].note,
    )


def _differ(state: State, other: State) -> bool:
    return any(not torch.equal(tensor, other[name]) for name, tensor in state.items())


def _changed_groups(clipped: State, rounded: State) -> dict[str, State]:
    """The rounded tensors that differ from the clipped ones, by the name of their group."""
    groups: dict[str, State] = {}
    for name, tensor in rounded.items():
        if not torch.equal(tensor, clipped[name]):
            groups.setdefault(group_of(name), {})[name] = tensor
    return groups


def take_apart(merged: State, shipped: State, settings: QuantizerSettings) -> tuple[State, State]:
    """The clipped and the rounded weights between `merged` and `shipped`.

    Quantizers that read text have neither step: merged and shipped.
    """
    if not isinstance(QUANTIZERS[type(settings)], MatrixQuantizer):
        return merged, shipped
    clipped, rounded = dict(merged), dict(shipped)
    for tensor in quantize_state(merged, settings).tensors:
        bits = bits_of(tensor.format)
        if bits is None or tensor.name not in shipped:
            continue
        weight = merged[tensor.name].float()
        clipped[tensor.name], rounded[tensor.name] = _of_rows(weight, tensor, bits, settings)
    return clipped, rounded


def _of_rows(
    weight: Tensor, tensor: QuantizedTensor, bits: int, settings: QuantizerSettings
) -> tuple[Tensor, Tensor]:
    """`weight` (R, C) clipped, and rounded on row scales (R, 1) in float32 as the quantizer had them before
    it stored them.
    """
    assert tensor.clip_ratios is not None
    level = max_level(bits)
    clip = (weight.abs().amax(dim=1) * tensor.clip_ratios).unsqueeze(1)
    if isinstance(
        settings, Reference
    ):  # its int6 is every fourth level of its int8, and its scale has a floor
        fine_level, every = max_level(8), 2 ** (8 - bits)
        fine = (clip / fine_level).clamp_min(1 / fine_level)
        step = fine * every
        codes = ((weight / fine).round().clamp(-fine_level, fine_level) / every).round().clamp(-level, level)
    else:
        step = (clip / level).clamp_min(torch.finfo(torch.float32).tiny)
        codes = (weight / step).round().clamp(-level, level)
    limit = step * level
    return torch.where(weight.abs() > limit * _CLIP_SLACK, weight.clamp(-limit, limit), weight), codes * step


def ratio_with_error(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Σ values / Σ weights over sequences, (N,) each, and its standard error (ratio estimator; Cochran,
    Sampling Techniques, 1977, 6.4).
    """
    total = float(weights.sum())
    ratio = float(values.sum()) / total
    spread = values - ratio * weights
    return ratio, math.sqrt(len(values) / (len(values) - 1) * float(np.square(spread).sum())) / total


@torch.inference_mode()
def _score(network: GPT, ids: Tensor, against: Sequence[Scored], keep: bool) -> Scored:
    """`ids` (N, T + 1), compared place by place with models whose predictions were kept on the same
    sequences.
    """
    nats, kept, sums = [], [], [0.0] * len(against)
    batches = ids.split(max(1, _TOKENS_AT_ONCE // (ids.size(1) - 1)))
    for index, batch in enumerate(batches):
        found = torch.log_softmax(network.logits(network.hidden(batch[:, :-1])).flatten(0, 1), dim=-1)
        own = F.nll_loss(found, batch[:, 1:].flatten(), reduction="none")
        nats.append(own.double().view(len(batch), -1).sum(dim=1))
        for other, model in enumerate(against):
            expected = model.predictions[index]
            sums[other] += float((expected.exp() * (expected - found)).sum(dtype=torch.float64))
        if keep:
            kept.append(found)
    num_targets = ids.size(0) * (ids.size(1) - 1)
    return Scored(torch.cat(nats).numpy(), kept, [total / num_targets for total in sums])
