"""Bits per byte of a model on a token stream, by non-overlapping or sliding windows; every target is
scored exactly once.

N = tokens − 1 targets; target t is token t+1, predicted from at most `sequence_length` tokens up to t.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from schemas.settings import ScoringSettings
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
    windows = [Window(0, 0, min(length, num_targets))]
    start = stride
    while start + length - stride < num_targets:
        windows.append(Window(start, start + length - stride, min(start + length, num_targets)))
        start += stride
    return windows


@torch.inference_mode()
def score(
    model: GPT,
    tokens: TokenStream,
    table: TokenBytes,
    settings: ScoringSettings,
    stride: int,
    dtype: torch.dtype,
    progress: Callable[[float, float, str], None] = lambda done, total, unit: None,
) -> ScoreSums:
    """Score `tokens` with windows `stride` apart, shared evenly by all processes.

    Raises ValueError for fewer than two tokens.
    """
    num_targets = len(tokens) - 1
    if num_targets < 1:
        raise ValueError(f"the validation split has {len(tokens)} tokens; scoring needs at least 2")
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = model.tok_emb.weight.device
    windows = plan_windows(num_targets, settings.sequence_length, stride)
    mine = windows[len(windows) * rank // world : len(windows) * (rank + 1) // world]
    sums = torch.zeros(5, dtype=torch.float64)
    batch_size = max(1, settings.batch_tokens // settings.sequence_length)
    done = 0
    for batch in _batches(mine, batch_size):
        rows = np.stack([tokens.read(window.start, window.stop - window.start + 1) for window in batch])
        ids = torch.from_numpy(rows).to(device)
        num_scored = batch[0].stop - batch[0].first_target
        nll = _nll(model, ids, num_scored, dtype).double().cpu()
        previous, targets = rows[:, -num_scored - 1 : -1], rows[:, -num_scored:]
        is_bos = torch.from_numpy(targets == BOS_ID)
        num_bytes = int(count_bytes(table, previous, targets).sum())
        sums += torch.tensor(
            [nll.sum(), nll.numel(), num_bytes, is_bos.sum(), nll[is_bos].sum()], dtype=torch.float64
        )
        done += len(batch)
        progress(done, len(mine), "windows")
    if world > 1:
        dist.all_reduce(sums)
    total = sums.tolist()
    return ScoreSums(total[0], int(total[1]), int(total[2]), int(total[3]), total[4])


def _nll(model: GPT, ids: Tensor, num_scored: int, dtype: torch.dtype) -> Tensor:
    """Nats of the last `num_scored` targets of each row of ids (B, T+1) -> (B, num_scored)."""
    # A GPU's causal attention takes as many queries as keys; another call there, with a mask, has not been
    # measured.
    num_last = num_scored if ids.device.type == "cpu" else None
    hidden = model.hidden(ids[:, :-1], dtype, num_last)[:, -num_scored:]
    logits = model.logits(hidden)
    return F.cross_entropy(logits.flatten(0, 1), ids[:, -num_scored:].flatten(), reduction="none").view(
        len(ids), num_scored
    )


def _batches(windows: list[Window], size: int) -> list[list[Window]]:
    """Consecutive windows of equal shape, at most `size` together."""
    batches: list[list[Window]] = []
    for window in windows:
        shape = (window.stop - window.start, window.stop - window.first_target)
        if batches and len(batches[-1]) < size:
            last = batches[-1][0]
            if shape == (last.stop - last.start, last.stop - last.first_target):
                batches[-1].append(window)
                continue
        batches.append([window])
    return batches


def score_as_dict(sums: ScoreSums, seconds: float) -> dict[str, float]:
    """A score as plain JSON types, with what follows from the sums."""
    return {**asdict(sums), "bpb": sums.bpb, "loss": sums.loss, "seconds": seconds}


def score_line(kind: str, scored: dict[str, float]) -> str:
    """The line of a log about one score; `scored` as `score_as_dict` gives it."""
    return (
        f"val_bpb_{kind} {scored['bpb']:.8f} val_loss {scored['loss']:.8f} targets {scored['num_targets']} "
        f"bytes {scored['num_bytes']} in {scored['seconds']:.1f} s"
    )
