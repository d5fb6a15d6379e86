"""Causal attention on this CPU in bfloat16: products in blocks against torch's fused kernel, with gradients and without.

python -m benchmarks.attention_cpu [--runs 7] [--json results.jsonl]
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import Figure, alternate, compared, parser_for, report
from stages.core.model import attend_in_blocks

SHAPES = ((32, 64, 2, 1, 16), (8, 256, 3, 1, 64), (2, 1024, 3, 1, 64), (1, 2048, 8, 4, 64))


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


def compare(shape: tuple[int, ...], gradients: bool, runs: int) -> Figure:
    """Both sides over tensors of shape (B, T, H or K, E)."""
    batch, tokens, heads, kv_heads, dims = shape
    sizes = [(batch, tokens, n, dims) for n in (heads, kv_heads, kv_heads)]
    tensors = [torch.randn(size, dtype=torch.bfloat16, requires_grad=gradients) for size in sizes]

    def once(blocks: bool) -> None:
        y = attend_in_blocks(*tensors, 64 if tokens <= 512 else 128) if blocks else fused(*tensors)
        if gradients:
            y.backward(torch.ones_like(y))

    sides = {"blocks": lambda: once(True), "fused": lambda: once(False)}
    alternate(sides, 1)
    samples = alternate(sides, runs)
    what = f"{'forward and backward' if gradients else 'forward'}: B {batch} T {tokens} H {heads}/{kv_heads} E {dims}"
    return compared("attention", what, samples["blocks"], samples["fused"], 1.0)


def main() -> None:
    options = parser_for("attention_cpu", "Attention in blocks against the fused kernel.", runs=7).parse_args()
    torch.set_num_threads(2)
    report([compare(shape, gradients, options.runs) for shape in SHAPES for gradients in (True, False)], options.json)


if __name__ == "__main__":
    main()
