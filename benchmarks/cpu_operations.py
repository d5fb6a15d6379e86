"""Operations of a training step on this CPU: our gradients against PyTorch's own, in the precision that
this CPU computes well in.

python -m benchmarks.cpu_operations [--runs 15] [--precision bfloat16] [--json results.jsonl]
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import Figure, alternate, compared, parser_for, report
from stages.core.cpu_operations import CausalAttention, ReluSquared, RmsNorm

# B, T, H, K, E: smoke, demo and medium, a long window, the record's
ATTENTION_SHAPES = ((32, 64, 2, 1, 16), (8, 256, 3, 1, 64), (2, 1024, 3, 1, 64), (1, 2048, 8, 4, 64))
NORM_SHAPE = (8, 256, 192)
MLP_SHAPE = (8, 256, 512)


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


def in_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return CausalAttention.apply(q, k, v, 64 if k.size(1) <= 512 else 128)


def compare(
    what: str,
    ours: Callable[..., Tensor],
    peer: Callable[..., Tensor],
    inputs: list[Tensor],
    gradients: bool,
    runs: int,
) -> Figure:
    """Seconds of both sides over `inputs`, backward pass included where `gradients`."""
    inputs = [x.requires_grad_(gradients) for x in inputs]

    def once(function: Callable[..., Tensor]) -> None:
        y = function(*inputs)
        if gradients:
            torch.autograd.grad(y, inputs, torch.ones_like(y))

    sides = {"ours": lambda: once(ours), "peer": lambda: once(peer)}
    alternate(sides, 2)
    samples = alternate(sides, runs)
    passes = "forward and backward" if gradients else "forward"
    return compared("cpu operations", f"{what}, {passes}", samples["ours"], samples["peer"], 1.0)


def main() -> None:
    parser = parser_for("cpu_operations", "Our gradients against PyTorch's own.", runs=15)
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="float32")
    options = parser.parse_args()
    torch.set_num_threads(2)
    dtype = torch.bfloat16 if options.precision == "bfloat16" else torch.float32
    figures = [
        compare(
            "RMS norm",
            lambda x: RmsNorm.apply(x, 1.0),
            lambda x: F.rms_norm(x, (x.size(-1),)),
            [made(NORM_SHAPE, dtype)],
            True,
            options.runs,
        ),
        compare(
            "relu²",
            ReluSquared.apply,
            lambda x: F.relu(x).square(),
            [made(MLP_SHAPE, dtype)],
            True,
            options.runs,
        ),
    ]
    for batch, tokens, heads, kv_heads, dims in ATTENTION_SHAPES:
        what = f"attention in blocks: B {batch} T {tokens} H {heads}/{kv_heads} E {dims}"
        for gradients in (True, False):
            tensors = [made((batch, tokens, n, dims), dtype) for n in (heads, kv_heads, kv_heads)]
            figures.append(compare(what, in_blocks, fused, tensors, gradients, options.runs))
    report(figures, options.json)


def made(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, dtype=dtype)


if __name__ == "__main__":
    main()
