"""Ablation of the packaged model without training: a few validation windows with and without each technique.

Shape legend: B windows, T tokens, D model dim, H query heads, K key/value heads, E head dim, V vocabulary.
"""

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schemas.model_settings import ModelSettings
from stages.core.bits_per_byte import TokenBytes, count_bytes
from stages.core.loader import TokenStream
from stages.core.model import GPT, Attention
from stages.core.shards import BOS_ID

MAX_PROBE_TOKENS = 4096
MAX_PROBE_LOGITS = 2**24  # float32: 64 MiB
_BY_SKIP = ("skip_weights", "skip_gates")  # a row for each skip


@dataclass(frozen=True)
class Windows:
    """`ids` (B, T+1) int64, inputs and targets in one, and the UTF-8 bytes that the targets stand for."""

    ids: Tensor
    num_bytes: int

    @property
    def num_tokens(self) -> int:
        return self.ids.size(0) * (self.ids.size(1) - 1)

    @property
    def num_document_starts(self) -> int:
        """Number of BOS inputs that follow a token of another document."""
        return int((self.ids[:, 1:-1] == BOS_ID).sum())


@dataclass(frozen=True)
class Probe:
    """`logits` (B, T, V) float32 of one model on the windows, and what they score there."""

    logits: Tensor
    bpb: float


@dataclass(frozen=True)
class OwnValue:
    """Mean |y·v̂|/‖y‖ over heads, tokens and the layers with XSA: the share of a token's attention output y
    that lies along its own value v.

    `after` uses the output after the exclusion in the product, and the norm before it. So a first token,
    whose whole output is its own value, counts as 0.
    """

    num_layers: int
    before: float
    after: float


@dataclass(frozen=True)
class Effect:
    """The effect of removing one technique from the packaged model. `parameters` are its own ones."""

    parameters: tuple[str, ...]
    logit_change: float  # root mean square, over that of the logits
    bpb_change: float  # positive: worse without it


def choose_windows(tokens: TokenStream, table: TokenBytes, bos_positions: np.ndarray, length: int) -> Windows:
    """At most MAX_PROBE_TOKENS tokens in windows of `length`: around document starts if there are enough,
    else evenly spread.

    bos_positions (documents,) int64: positions of BOS in the stream. A text of one single document is joined
    to its own end in one window, so that a document start exists.
    """
    num_targets = len(tokens) - 1
    limit = max(2, min(MAX_PROBE_TOKENS, MAX_PROBE_LOGITS // len(table.base_bytes), num_targets))
    length = min(length, limit)
    count = limit // length
    starts = np.linspace(0, num_targets - length, count).astype(np.int64)
    inner = bos_positions[(bos_positions > 0) & (bos_positions < num_targets)]
    if len(inner):
        chosen = inner[np.unique(np.linspace(0, len(inner) - 1, min(count, len(inner))).astype(np.int64))]
        starts[: len(chosen)] = np.clip(chosen - length // 2, 0, num_targets - length)
    rows = np.stack([tokens.read(int(start), length + 1) for start in starts])
    if not len(inner) and len(bos_positions):
        rows[-1] = np.concatenate((rows[-1][-(length // 2) :], tokens.read(0, length + 1 - length // 2)))
    num_bytes = int(count_bytes(table, rows[:, :-1], rows[:, 1:]).sum())
    return Windows(torch.from_numpy(rows), num_bytes)


def load_model(settings: ModelSettings, state: dict[str, Tensor]) -> GPT:
    """A model with the weights that it has parameters for. Raises RuntimeError if one is missing.

    A model without loops has fewer skips than `state`: it takes the first, as it did in training before the
    loops began.
    """
    model = GPT(settings)
    wanted = model.state_dict()
    model.load_state_dict(
        {
            name: tensor[: len(wanted[name])] if name in _BY_SKIP else tensor
            for name, tensor in state.items()
            if name in wanted
        }
    )
    return model.eval()


@torch.inference_mode()
def probe(model: GPT, windows: Windows) -> Probe:
    """One float32 pass over the windows."""
    logits = model.logits(model.hidden(windows.ids[:, :-1]))
    nats = F.cross_entropy(logits.flatten(0, 1), windows.ids[:, 1:].flatten(), reduction="sum")
    return Probe(logits, float(nats) / math.log(2) / max(1, windows.num_bytes))


def effect_without(
    settings: ModelSettings, state: dict[str, Tensor], whole: Probe, windows: Windows
) -> Effect:
    """Compare the `whole` model with a model of `settings`, which lack one technique, on the same weights."""
    model = load_model(settings, state)
    without = probe(model, windows)
    change = float(
        (without.logits - whole.logits).square().mean().sqrt() / whole.logits.square().mean().sqrt()
    )
    only_with_it = tuple(name for name in state if name not in model.state_dict())
    return Effect(only_with_it, change, without.bpb - whole.bpb)


@torch.inference_mode()
def own_value(model: GPT, windows: Windows) -> OwnValue | None:
    """The self-projection that XSA removes, measured on the attention modules themselves.

    None for a model without XSA.

    Each module is called again with its recorded arguments, once without its exclusion and once with it.
    """
    layers = [module for module in model.modules() if isinstance(module, Attention) and module.exclusive]
    if not layers:
        return None
    calls: dict[Attention, dict[str, Any]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert isinstance(module, Attention)
        calls[module] = dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)

    with _hooks([layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]):
        model.hidden(windows.ids[:, :-1])
    before, after = [], []
    for layer in layers:
        values = layer.v(calls[layer]["x"])
        if calls[layer]["value_shift"] is not None:
            values = values + calls[layer]["value_shift"]
        layer.exclusive = False
        whole = _attention_output(layer, calls[layer])
        layer.exclusive = True
        left = _attention_output(layer, calls[layer])
        before.append(_mean_projection(whole, values, whole, layer))
        after.append(_mean_projection(left, values, whole, layer))
    return OwnValue(len(layers), sum(before) / len(before), sum(after) / len(after))


def rotated_dims(model: GPT, windows: Windows) -> int:
    """Dimensions of a head that rotate with position, counted in the tables that the first layer reads."""
    given: list[tuple[Tensor, Tensor]] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert isinstance(module, Attention)
        given.append(inspect.signature(module.forward).bind(*args, **kwargs).arguments["rotation"])

    first = next(module for module in model.modules() if isinstance(module, Attention))
    with _hooks([first.register_forward_pre_hook(note, with_kwargs=True)]):
        probe(model, windows)
    _, sines = given[0]
    return 2 * int((sines.abs().amax(dim=0) > 0).sum())


def _attention_output(layer: Attention, arguments: dict[str, Any]) -> Tensor:
    """The input of the module's output projection: (B, T, H·E)."""
    seen: list[Tensor] = []
    with _hooks([layer.out.register_forward_pre_hook(lambda module, args: seen.append(args[0]))]):
        layer(**arguments)
    return seen[0]


def _mean_projection(outputs: Tensor, values: Tensor, measure: Tensor, layer: Attention) -> float:
    """Mean over heads of |output·v̂| over the head's norm in `measure`; outputs and measure (B, T, H·E),
    values (B, T, K·E).
    """
    batch, tokens, _ = outputs.shape
    shape = (batch, tokens, layer.num_kv_heads, -1, layer.head_dim)
    direction = F.normalize(values.view(shape), dim=-1)
    along = (outputs.view(shape) * direction).sum(-1).abs()
    return float((along / measure.view(shape).norm(dim=-1).clamp_min(1e-12)).mean())


@contextmanager
def _hooks(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
