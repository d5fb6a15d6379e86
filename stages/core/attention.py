"""Attention's parts: rotary positions, causal attention over all or the nearest positions, exclusive values.

Shape legend: B batch, T tokens, Q queries, H query heads, K key/value heads, E head dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.core.cpu_operations import CausalAttention


def attend_causally(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q·k/√E) v over this and earlier positions. q (B, Q, H, E), k and v (B, T, K, E) -> (B, Q,
    H, E).

    The queries are those of the last Q ≤ T positions. On the CPU plain products in blocks are faster than the
    fused kernel (benchmarks/cpu_operations.py), but in float32 without gradients only for short windows. With
    gradients they keep T·T/2 shares a head, so only up to 1,024 tokens.
    """
    asked, tokens = q.size(1), k.size(1)
    longest = 1024 if torch.is_grad_enabled() else 512
    if q.device.type == "cpu" and (
        tokens <= longest or (q.dtype == torch.bfloat16 and not torch.is_grad_enabled())
    ):
        return CausalAttention.apply(q, k, v, 64 if tokens <= 512 else 128)
    gqa = k.size(2) < q.size(2)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if asked == tokens:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa).transpose(1, 2)
    seen = torch.ones(asked, tokens, dtype=torch.bool, device=q.device).tril(tokens - asked)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=gqa).transpose(1, 2)


def attend_nearby(q: Tensor, k: Tensor, v: Tensor, reach: int) -> Tensor:
    """The same over each position and the `reach` − 1 before it (sliding-window attention,
    arXiv:2004.05150). A block of `reach` queries meets 2·`reach` keys.
    """
    asked, tokens = q.size(1), k.size(1)
    if tokens <= reach:
        return attend_causally(q, k, v)
    groups = q.size(2) // k.size(2)  # a GPU's kernel for masks knows no groups
    k, v = k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    back = torch.arange(reach, 2 * reach, device=q.device)[:, None] - torch.arange(2 * reach, device=q.device)
    seen = (back >= 0) & (back < reach)
    parts = []
    for start in range(tokens - asked, tokens, reach):
        stop, first = min(start + reach, tokens), max(0, start - reach)
        left = first - (start - reach)
        parts.append(
            F.scaled_dot_product_attention(
                q[:, :, start + asked - tokens : stop + asked - tokens],
                k[:, :, first:stop],
                v[:, :, first:stop],
                attn_mask=seen[: stop - start, left : left + stop - first],
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2)


def rotary_angles(tokens: int, dims: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin (T, dims/2) of position times frequency, float32."""
    frequencies = base ** (-torch.arange(0, dims, 2, dtype=torch.float32, device=device) / max(dims, 1))
    angles = torch.outer(torch.arange(tokens, dtype=torch.float32, device=device), frequencies)
    return angles.cos(), angles.sin()


def rotate_partly(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first 2·cos.size(1) dims of each head, half-split; the others pass. x (B, T, heads, E)."""
    half = cos.size(1)
    if half == 0:
        return x
    cos, sin = cos.to(x.dtype)[:, None], sin.to(x.dtype)[:, None]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos + second * sin, second * cos - first * sin, rest), dim=-1)


def exclude_own_value(y: Tensor, v: Tensor) -> Tensor:
    """XSA: y − (y·v̂)v̂ with v̂ = v/‖v‖ of the head's KV group. y (B, T, H, E), v (B, T, K, E) -> (B, T,
    H, E).
    """
    batch, tokens, heads, dims = y.shape
    direction = F.normalize(v, dim=-1).unsqueeze(3)  # (B, T, K, 1, E)
    grouped = y.view(batch, tokens, v.size(2), heads // v.size(2), dims)
    return (grouped - (grouped * direction).sum(-1, keepdim=True) * direction).view(
        batch, tokens, heads, dims
    )
