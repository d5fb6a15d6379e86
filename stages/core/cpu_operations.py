"""Operations of a training step with gradients of their own, for the CPU.

PyTorch differentiates a CPU's RMS norm, squared ReLU and attention in blocks operation by operation, and each
of these reads and writes whole activations. The gradients here make fewer passes. model.py has the same
operations in plain PyTorch and takes these on a CPU while gradients are on (`python -m
benchmarks.cpu_operations` compares both).

Shape legend: B batch, T tokens, Q ≤ T queries, H query heads, K key/value heads, G = H/K, E head dim.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

RMS_EPS = torch.finfo(torch.float32).eps  # what F.rms_norm adds to the mean square


class RmsNorm(torch.autograd.Function):
    """scale · x / sqrt(mean(x²) + eps) over the last dim: x (..., D), scale > 0 -> (..., D)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        factor = length.square_().div_(x.size(-1)).add_(RMS_EPS).rsqrt_().mul_(scale).to(x.dtype)
        normed = x * factor
        ctx.save_for_backward(normed, factor)
        ctx.along = -1.0 / (x.size(-1) * scale**2)
        return normed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        normed, factor = ctx.saved_tensors
        along = torch.linalg.vecdot(grads[0], normed).unsqueeze(-1).mul_(ctx.along)
        return torch.addcmul(grads[0], normed, along).mul_(factor), None


class ReluSquared(torch.autograd.Function):
    """relu(x)² of each element. relu(x) is all that the gradient needs: it is 0 where the slope is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        kept = F.relu(x)
        ctx.save_for_backward(kept)
        return kept * kept

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (kept,) = ctx.saved_tensors
        return (kept * grads[0]).mul_(2)


class LeakyReluSquared(torch.autograd.Function):
    """leaky_relu(x)² of each element, 0 < slope ≤ 1. What is kept has the sign of x, which the gradient
    needs: 2x above zero, 2·slope²·x below.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        kept = F.leaky_relu(x, slope)
        ctx.save_for_backward(kept)
        ctx.slope = slope
        return kept * kept

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return F.leaky_relu(kept, ctx.slope).mul_(grads[0]).mul_(2), None


class CausalAttention(torch.autograd.Function):
    """softmax(q·k/√E) v over this and earlier positions, `block` queries at a time: a block's products
    end at its own last position.

    q (B, Q, H, E), the queries of the last Q positions; k and v (B, T, K, E) -> (B, Q, H, E). The gradient
    keeps the shares, B·H·Q·T/2 numbers.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, block: int) -> Tensor:
        asked, tokens, group = q.size(1), k.size(1), q.size(2) // k.size(2)
        rows, keys, values = _by_kv_head(q, group), _by_kv_head(k * q.size(3) ** -0.5, 1), _by_kv_head(v, 1)
        future = (
            torch.full((block, block), float("-inf"), dtype=q.dtype).triu(1).repeat_interleave(group, dim=0)
        )
        y, kept = torch.empty_like(rows), []
        for start in range(0, asked, block):
            stop = min(start + block, asked)
            mine, size, seen = slice(start * group, stop * group), stop - start, tokens - asked + stop
            scores = torch.bmm(rows[:, mine], keys[:, :seen].mT)
            scores[:, :, seen - size :] += future[: size * group, :size]
            kept.append(torch.softmax(scores, dim=-1))
            y[:, mine] = torch.bmm(kept[-1], values[:, :seen])
        ctx.save_for_backward(rows, keys, values, *kept)
        ctx.block, ctx.group, ctx.batch, ctx.scale = block, group, q.size(0), q.size(3) ** -0.5
        return _by_position(y, q.size(0), group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        rows, keys, values, *kept = ctx.saved_tensors
        y_grad, group = _by_kv_head(grads[0], ctx.group), ctx.group
        rows_grad, keys_grad, values_grad = (
            torch.empty_like(rows),
            torch.zeros_like(keys),
            torch.zeros_like(values),
        )
        for index, shares in enumerate(kept):
            start, seen = index * ctx.block * group, shares.size(2)
            mine = slice(start, start + shares.size(1))
            shares_grad = torch.bmm(y_grad[:, mine], values[:, :seen].mT)
            scores_grad = torch._softmax_backward_data(shares_grad, shares, -1, shares.dtype)
            rows_grad[:, mine] = torch.bmm(scores_grad, keys[:, :seen])
            keys_grad[:, :seen].baddbmm_(scores_grad.mT, rows[:, mine])
            values_grad[:, :seen].baddbmm_(shares.mT, y_grad[:, mine])
        q_grad = _by_position(rows_grad, ctx.batch, group)
        return (
            q_grad,
            _by_position(keys_grad.mul_(ctx.scale), ctx.batch, 1),
            _by_position(values_grad, ctx.batch, 1),
            None,
        )


def _by_kv_head(x: Tensor, group: int) -> Tensor:
    """(B, T, K·group, E) -> (B·K, T·group, E): the rows that one key/value head serves lie together."""
    batch, tokens, heads, dims = x.shape
    grouped = x.reshape(batch, tokens, heads // group, group, dims).transpose(1, 2)
    return grouped.reshape(batch * heads // group, tokens * group, dims)


def _by_position(rows: Tensor, batch: int, group: int) -> Tensor:
    """The way back: (B·K, T·group, E) -> (B, T, K·group, E)."""
    by_head = rows.view(batch, len(rows) // batch, rows.size(1) // group, group, rows.size(2))
    return by_head.transpose(1, 2).reshape(batch, rows.size(1) // group, -1, rows.size(2))
