"""Test-time training: each document is scored chunk by chunk, and a LoRA of its own learns from each chunk
once that is scored.

Source: parameter-golf pull request 1530, with the values of later entries; LoRA is arXiv:2106.09685. What a
score may not do holds by construction (issue 1017 there): a target is scored before anything learns from it,
once, over the whole vocabulary, and by its own document's past alone. So no figure depends on the order of
documents or on which are scored side by side.

Shape legend: B documents, T tokens, D model dim, V vocabulary, r rank.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from schemas.lora_settings import LoraSettings
from schemas.scoring_settings import ScoringSettings
from stages.core.bits_per_byte import TokenBytes
from stages.core.loader import TokenStream
from stages.core.model import GPT
from stages.core.scoring import ScoreSums, as_score, score, target_sums

_LORA_SEED = 0
"""Of the input matrices at their start, the same in every document."""

ROUNDED_TO = {"cpu": 1, "cuda": 256}
"""Windows have a multiple of so many tokens, with zeros at the end, which no earlier position sees. With a
new length at each step, a GPU would ask for new memory at each step."""


@dataclass(frozen=True)
class AdaptedSums:
    """Scores with and without test-time training, of the same windows; None where the clock ran out.

    `num_steps` counts a document's steps, `done_share` the targets scored when the clock ran out, or 1.
    """

    adapted: ScoreSums | None
    without: ScoreSums
    num_documents: int
    num_steps: int
    done_share: float
    seconds: float
    without_seconds: float


class DocumentLoras:
    """A LoRA for each of B documents at each target of each pass of `model`, and AdamW for all of them.

    `attached` adds x into out · alpha/rank to what a target gives, by hooks, so that there is one forward
    pass. `into` (B, in, r) begins uniform in ±1/sqrt(in), `out` (B, r, rows) as 0: at the start nothing
    changes. Both have the weights' type.
    """

    def __init__(self, model: GPT, settings: LoraSettings, num_documents: int) -> None:
        self._model, self._settings, self._pass = model, settings, -1
        self._pairs: dict[tuple[int, str], tuple[nn.Parameter, nn.Parameter]] = {}
        weight = model.tok_emb.weight
        generator = torch.Generator().manual_seed(_LORA_SEED)
        for place, (rows, columns) in self._shapes().items():
            bound = columns**-0.5
            begin = torch.empty(columns, settings.rank, dtype=weight.dtype)
            begin.uniform_(-bound, bound, generator=generator)
            into = begin.to(weight.device).expand(num_documents, -1, -1).clone()
            out = torch.zeros(num_documents, settings.rank, rows, dtype=weight.dtype, device=weight.device)
            self._pairs[place] = nn.Parameter(into), nn.Parameter(out)
        self._begin_steps()

    def _begin_steps(self) -> None:
        settings = self._settings
        self.parameters = [param for pair in self._pairs.values() for param in pair]
        self._adamw = torch.optim.AdamW(
            self.parameters,
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def _shapes(self) -> dict[tuple[int, str], tuple[int, int]]:
        """(pass, target) -> rows and columns; the head stands after the last pass."""
        shape, targets = self._model.settings, self._settings.targets
        wide, narrow = shape.model_dim, shape.num_kv_heads * shape.head_dim
        rows = {"q": wide, "k": narrow, "v": narrow, "o": wide, "mlp": wide}
        passes = len(shape.layer_order(self._model.looped))
        found = {
            (number, name): (rows[name], wide)
            for number in range(passes)
            for name in targets
            if name != "head"
        }
        return found | ({(passes, "head"): (shape.vocab_size, wide)} if "head" in targets else {})

    @contextmanager
    def attached(self) -> Iterator[None]:
        """While it lasts, the model's forward passes have the LoRAs, one for each row of ids."""
        hooks = [block.register_forward_pre_hook(self._next_pass) for block in self._model.blocks]
        for block in self._model.blocks:
            parts: dict[str, Any] = {"o": block.attn, "mlp": block.mlp}
            parts |= {name: getattr(block.attn, name) for name in ("q", "k", "v")}
            for name in self._settings.targets:
                if name != "head":
                    hooks.append(parts[name].register_forward_hook(self._hook(name)))
        if "head" in self._settings.targets:
            head = self._model.head or self._model.tok_emb
            hooks.append(head.register_forward_hook(self._hook("head")))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def hidden(self, ids: Tensor, dtype: torch.dtype, num_last: int) -> Tensor:
        """The model's hidden output of the last positions: ids (B, T) -> (B, num_last, D)."""
        self._pass = -1
        on_cpu = ids.device.type == "cpu"  # as in scoring.py
        return self._model.hidden(ids, dtype, num_last if on_cpu else None)[:, -num_last:]

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, V), float32."""
        self._pass += 1
        return self._model.logits(hidden)

    def learn(self, loss: Tensor) -> None:
        """One step of AdamW on a sum over documents: each LoRA sees its own document's part only."""
        loss.backward()
        self._adamw.step()
        self._adamw.zero_grad()

    def keep_first(self, num_documents: int) -> None:
        """Forget all documents but the first ones: those have ended."""
        states = [self._adamw.state[param] for param in self.parameters]
        # New parameters, because autograd knows the shape of one that it has seen.
        self._pairs = {
            place: (nn.Parameter(into.detach()[:num_documents]), nn.Parameter(out.detach()[:num_documents]))
            for place, (into, out) in self._pairs.items()
        }
        self._begin_steps()
        for param, state in zip(self.parameters, states, strict=True):
            kept = {name: state[name][:num_documents] for name in ("exp_avg", "exp_avg_sq")}
            self._adamw.state[param] = {"step": state["step"], **kept}

    def _next_pass(self, module: nn.Module, given: Any) -> None:
        self._pass += 1

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        scale = self._settings.alpha / self._settings.rank

        def add(module: nn.Module, given: Any, result: Tensor) -> Tensor:
            into, out = self._pairs[self._pass, name]
            x = given[0][:, -result.size(1) :]
            product = torch.bmm(torch.bmm(x, into.to(x.dtype)) * scale, out.to(x.dtype))
            # Attention and MLP scale what they give, by their last and second argument.
            row_scale = {"o": 3, "mlp": 1}.get(name)
            return result + (product if row_scale is None else given[row_scale].to(x.dtype) * product)

        return add


def score_learning(
    model: GPT,
    tokens: TokenStream,
    table: TokenBytes,
    scoring: ScoringSettings,
    settings: LoraSettings,
    dtype: torch.dtype,
    progress: Callable[[float, float, str], None] = lambda done, total, unit: None,
    group: dist.ProcessGroup | None = None,
) -> AdaptedSums:
    """Score each document of `tokens` by sliding windows inside it, `settings.chunk_tokens` apart, while its
    LoRA learns; and first the same windows without.

    All processes share the documents and add up by `group`. The model's weights take no gradients any more.
    Raises ValueError for a chunk longer than a window, and as `score` does.
    """
    if settings.chunk_tokens > scoring.sequence_length:
        raise ValueError(
            f"chunk_tokens = {settings.chunk_tokens}: must be at most sequence_length = "
            f"{scoring.sequence_length}"
        )
    model.requires_grad_(False)
    first = time.monotonic()
    inside = replace(scoring, windows="documents")
    without = score(model, tokens, table, inside, settings.chunk_tokens, dtype, group=group)
    began = time.monotonic()
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    starts, lengths = _documents(tokens)
    mine = _document_batches(lengths, scoring, settings)[rank::world]
    whole = sum(int(lengths[batch].sum()) for batch in mine)
    done = 0

    def goes_on(newly_scored: int) -> bool:
        nonlocal done
        done += newly_scored
        progress(done, whole, "targets")
        return time.monotonic() - began <= settings.max_seconds

    sums, num_steps = torch.zeros(5, dtype=torch.float64), 0
    for chosen in mine:
        if not goes_on(0):
            break
        ids = _read_documents(tokens, starts[chosen], lengths[chosen])
        nll, steps, scored = _score_documents(model, ids, lengths[chosen], scoring, settings, dtype, goes_on)
        sums, num_steps = sums + target_sums(table, ids, scored, nll), num_steps + steps
    counted = torch.cat((sums, torch.tensor([num_steps], dtype=torch.float64)))
    if world > 1:
        dist.all_reduce(counted, group=group)
    seconds = time.monotonic() - began
    told, num_targets = as_score(counted[:5], "documents"), len(tokens) - 1
    in_time = told.num_targets == num_targets and seconds <= settings.max_seconds
    return AdaptedSums(
        adapted=told if in_time else None,
        without=without,
        num_documents=len(lengths),
        num_steps=int(counted[5]),
        done_share=told.num_targets / num_targets,
        seconds=seconds,
        without_seconds=began - first,
    )


def _documents(tokens: TokenStream) -> tuple[np.ndarray, np.ndarray]:
    """Start and number of targets of each document, the longest first; the last target is the next BOS."""
    starts = tokens.document_starts()
    lengths = np.diff(starts, append=len(tokens) - 1)
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    return starts[order], lengths[order]


def _document_batches(lengths: np.ndarray, scoring: ScoringSettings, settings: LoraSettings) -> list[slice]:
    """Neighbours of the sorted documents; windows of a batch have at most `scoring.batch_tokens` tokens."""
    batches, begin = [], 0
    while begin < len(lengths):
        window = min(int(lengths[begin]), scoring.sequence_length)
        size = min(settings.batch_documents, max(1, scoring.batch_tokens // window))
        batches.append(slice(begin, begin + size))
        begin += size
    return batches


def _read_documents(tokens: TokenStream, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Documents with these targets, the longest first: ids (B, T+1) int64, zeros after the end of each."""
    ids = np.zeros((len(lengths), int(lengths[0]) + 1), np.int64)
    for row, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        ids[row, : length + 1] = tokens.read(start, length + 1)
    return ids


def chunk_ends(length: int, window: int, chunk: int) -> list[int]:
    """Where the chunks of a document of `length` targets end.

    The first may be shorter, so that one of them ends with the first window. Then each chunk beyond is what a
    sliding window `chunk` apart scores, with the same context.
    """
    first = (window - 1) % chunk + 1
    return [*range(first, length, chunk), length]


def _score_documents(
    model: GPT,
    rows: np.ndarray,
    lengths: np.ndarray,
    scoring: ScoringSettings,
    settings: LoraSettings,
    dtype: torch.dtype,
    goes_on: Callable[[int], bool],
) -> tuple[Tensor, int, np.ndarray]:
    """Score documents with the LoRAs of each, which learn.

    rows (B, T+1) are documents of `lengths` (B,) targets. Returns nats of their targets (B, T) float64, steps
    of all together, and which targets are scored (B, T) bool: all, unless `goes_on`, which is told of each
    chunk's number, says no.
    """
    window, num_targets = scoring.sequence_length, rows.shape[1] - 1
    device = model.tok_emb.weight.device
    ids = torch.from_numpy(rows).to(device)
    loras = DocumentLoras(model, settings, len(lengths))
    nll = torch.zeros(len(lengths), num_targets, dtype=torch.float64, device=device)
    num_steps = begin = 0
    with loras.attached():
        for end in chunk_ends(num_targets, window, settings.chunk_tokens):
            alive, going_on = int((lengths > begin).sum()), int((lengths > end).sum())
            if begin and alive < len(loras.parameters[0]):
                loras.keep_first(alive)
            first = max(0, begin + settings.chunk_tokens - window) if begin else 0
            later = -(end - first) % ROUNDED_TO[device.type]
            seen = F.pad(ids[:alive, first:end], (0, later))
            with torch.set_grad_enabled(going_on > 0):
                hidden = loras.hidden(seen, dtype, end + later - begin)[:, : end - begin]
                chunk = _nats(loras.logits(hidden), ids[:alive, begin + 1 : end + 1])
            nll[:alive, begin:end] = chunk.detach()
            if going_on:
                # Those that end here learn nothing: their LoRAs are never used again.
                loras.learn(chunk[:going_on].mean(dim=1).sum())
            newly = int(np.clip(lengths - begin, 0, end - begin).sum())
            num_steps, begin = num_steps + going_on, end
            if not goes_on(newly):
                break
    scored = np.arange(num_targets) < np.minimum(lengths, begin)[:, None]
    return nll.cpu(), num_steps, scored


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats of `targets` (B, T): (B, T)."""
    flat = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return flat.view(targets.shape)
