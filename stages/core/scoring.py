"""Bits per byte of a model on a token stream, by non-overlapping or sliding windows, over the stream or
inside each document; every target is scored exactly once.

N = tokens − 1 targets; target t is token t+1, predicted from at most `sequence_length` tokens up to t.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from schemas.scoring_settings import ScoringSettings, Windows
from stages.core.bits_per_byte import TokenBytes, count_bytes
from stages.core.loader import TokenStream
from stages.core.model import GPT
from stages.core.shards import BOS_ID


@dataclass(frozen=True)
class Window:
    """Inputs are tokens [start, stop); the targets [first_target, stop) are scored here and nowhere else."""

    start: int
    first_target: int
    stop: int


@dataclass(frozen=True)
class ScoreSums:
    """Sums over scored targets, over all processes."""

    nll_nats_sum: float
    num_targets: int
    num_bytes: int
    num_bos_targets: int
    bos_nats_sum: float
    windows: Windows = "stream"

    @property
    def bpb(self) -> float:
        return self.nll_nats_sum / math.log(2) / self.num_bytes

    @property
    def loss(self) -> float:
        return self.nll_nats_sum / self.num_targets


def plan_windows(num_targets: int, length: int, stride: int) -> list[Window]:
    """Windows `stride` apart that together score each target once; stride == length gives non-overlapping
    windows.

    The first window scores all its targets, each later one only its last `stride`; the last one may be
    shorter. Windows end where start + length − stride would be past the last target.
    """
    return _windows_of(0, num_targets, length, stride)


def plan_document_windows(starts: np.ndarray, num_targets: int, length: int, stride: int) -> list[Window]:
    """The same inside each document, so that no window sees two (parameter-golf pull request 1530).

    `starts` (D,) int64: where documents begin, ascending from 0. The last target of a document is the BOS of
    the next one. Windows of like shape stand together.
    """
    ends = np.append(starts[1:], num_targets)
    windows = [
        window
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        if start < end
        for window in _windows_of(start, end, length, stride)
    ]
    return sorted(windows, key=lambda window: (window.first_target > window.start, *_shape(window)))


def _windows_of(begin: int, end: int, length: int, stride: int) -> list[Window]:
    """Windows over the targets [begin, end)."""
    windows = [Window(begin, begin, min(begin + length, end))]
    start = begin + stride
    while start + length - stride < end:
        windows.append(Window(start, start + length - stride, min(start + length, end)))
        start += stride
    return windows


def _shape(window: Window) -> tuple[int, int]:
    """Numbers of inputs and of scored targets."""
    return window.stop - window.start, window.stop - window.first_target


@torch.inference_mode()
def score(
    model: GPT,
    tokens: TokenStream,
    table: TokenBytes,
    settings: ScoringSettings,
    stride: int,
    dtype: torch.dtype,
    progress: Callable[[float, float, str], None] = lambda done, total, unit: None,
    group: dist.ProcessGroup | None = None,
    share: float = 1.0,
    reach: int | None = None,
) -> ScoreSums:
    """Score `tokens` with windows `stride` apart, shared by all processes; `settings.windows` says whether
    they stay inside documents. With a `share` below 1 only so many of them, evenly spaced. `group` adds up
    the sums: processes take more or less time for their share.

    With `reach` each token attends to so many up to itself, as in sliding windows one apart, but in windows
    of `stride` + `reach` tokens. Those that a window shares with the one before are read and not scored.

    Raises ValueError for fewer than two tokens.
    """
    num_targets = len(tokens) - 1
    if num_targets < 1:
        raise ValueError(f"the validation split has {len(tokens)} tokens; scoring needs at least 2")
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = model.tok_emb.weight.device
    length = settings.sequence_length if reach is None else stride + reach
    if settings.windows == "documents":
        windows = _spaced(plan_document_windows(tokens.document_starts(), num_targets, length, stride), share)
        mine = windows[rank::world]
        batches = _padded_batches(mine, settings.batch_tokens)
    else:
        windows = _spaced(plan_windows(num_targets, length, stride), share)
        mine = windows[len(windows) * rank // world : len(windows) * (rank + 1) // world]
        batches = _batches(mine, max(1, settings.batch_tokens // length))
    sums = torch.zeros(5, dtype=torch.float64)
    done = 0
    for batch in batches:
        rows, scored = _read(tokens, batch)
        num_last = rows.shape[1] - 1 - int(scored.any(axis=0).argmax())
        nll = _nll(model, torch.from_numpy(rows).to(device), num_last, dtype, reach).double().cpu()
        sums += target_sums(table, rows[:, -num_last - 1 :], scored[:, -num_last:], nll)
        done += len(batch)
        progress(done, len(mine), "windows")
    if world > 1:
        dist.all_reduce(sums, group=group)
    return as_score(sums, settings.windows)


def target_sums(table: TokenBytes, ids: np.ndarray, scored: np.ndarray, nll: Tensor) -> Tensor:
    """The sums of a score (5,) float64: nats, targets, bytes, BOS and their nats.

    ids (B, T+1) int64; scored (B, T) bool says which targets count, and nll (B, T) float64 has their nats.
    """
    nll = nll.masked_fill(torch.from_numpy(~scored), 0.0)
    is_bos = torch.from_numpy((ids[:, 1:] == BOS_ID) & scored)
    num_bytes = int((count_bytes(table, ids[:, :-1], ids[:, 1:]) * scored).sum())
    return torch.tensor(
        [nll.sum(), scored.sum(), num_bytes, is_bos.sum(), nll[is_bos].sum()], dtype=torch.float64
    )


def as_score(sums: Tensor, windows: Windows) -> ScoreSums:
    """What `target_sums` adds up to."""
    total = sums.tolist()
    return ScoreSums(total[0], int(total[1]), int(total[2]), int(total[3]), total[4], windows)


def _spaced(windows: list[Window], share: float) -> list[Window]:
    return [w for i, w in enumerate(windows) if math.ceil(i * share) < math.ceil((i + 1) * share)]


def _read(tokens: TokenStream, batch: list[Window]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (B, T+1) int64 of the windows, and which of their targets (B, T) count.

    Zeros follow a window shorter than the longest. No attention looks at what comes later, so they change no
    figure before them.
    """
    longest = max(window.stop - window.start for window in batch)
    rows, scored = np.zeros((len(batch), longest + 1), np.int64), np.zeros((len(batch), longest), bool)
    for row, window in enumerate(batch):
        num_inputs, num_scored = _shape(window)
        rows[row, : num_inputs + 1] = tokens.read(window.start, num_inputs + 1)
        scored[row, num_inputs - num_scored : num_inputs] = True
    return rows, scored


def _nll(model: GPT, ids: Tensor, num_scored: int, dtype: torch.dtype, reach: int | None) -> Tensor:
    """Nats of the last `num_scored` targets of each row of ids (B, T+1) -> (B, num_scored)."""
    # A GPU's causal attention takes as many queries as keys; another call there, with a mask, has not been
    # measured.
    num_last = num_scored if ids.device.type == "cpu" else None
    hidden = model.hidden(ids[:, :-1], dtype, num_last, reach)[:, -num_scored:]
    logits = model.logits(hidden)
    return F.cross_entropy(logits.flatten(0, 1), ids[:, -num_scored:].flatten(), reduction="none").view(
        len(ids), num_scored
    )


def _batches(windows: list[Window], size: int) -> list[list[Window]]:
    """Consecutive windows of equal shape, at most `size` together."""
    batches: list[list[Window]] = []
    for window in windows:
        if batches and len(batches[-1]) < size and _shape(window) == _shape(batches[-1][0]):
            batches[-1].append(window)
        else:
            batches.append([window])
    return batches


def _padded_batches(windows: list[Window], num_tokens: int) -> list[list[Window]]:
    """Consecutive windows that together take at most `num_tokens` tokens, each padded to the longest."""
    batches: list[list[Window]] = []
    longest = 0
    for window in windows:
        longest = max(longest, window.stop - window.start)
        if batches and (len(batches[-1]) + 1) * longest <= num_tokens:
            batches[-1].append(window)
        else:
            batches.append([window])
            longest = window.stop - window.start
    return batches


def score_as_dict(sums: ScoreSums, seconds: float) -> dict[str, Any]:
    """A score as plain JSON types, with what follows from the sums."""
    return {**asdict(sums), "bpb": sums.bpb, "loss": sums.loss, "seconds": seconds}


def score_line(kind: str, scored: dict[str, Any], reach: int | None = None) -> str:
    """The line of a log about one score: `scored` as `score_as_dict` gives it, `reach` that of `score`."""
    mode = ", windows inside documents" if scored["windows"] == "documents" else ""
    mode += f", attention over {reach} tokens" if reach else ""
    return (
        f"val_bpb_{kind} {scored['bpb']:.8f} val_loss {scored['loss']:.8f} targets {scored['num_targets']} "
        f"bytes {scored['num_bytes']}{mode + ',' if mode else ''} in {scored['seconds']:.1f} s"
    )
