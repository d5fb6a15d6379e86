"""Causal attention on this CPU: two batched products against torch's fused kernel, forward plus backward, bfloat16.

python -m benchmarks.attention_cpu [--runs 7] [--json results.jsonl]
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.core.model import attend_causally

SHAPES = ((32, 64, 2, 1, 16), (8, 128, 3, 1, 64), (8, 256, 3, 1, 64))


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(2)
    for batch, tokens, heads, kv_heads, dims in SHAPES:
        sizes = [(batch, tokens, n, dims) for n in (heads, kv_heads, kv_heads)]
        tensors = [torch.randn(size, dtype=torch.bfloat16, requires_grad=True) for size in sizes]
        seconds: dict[str, list[float]] = {"products": [], "fused": []}
        for _ in range(options.runs):
            for name, function in (("products", attend_causally), ("fused", fused)):
                began = time.perf_counter()
                function(*tensors).sum().backward()
                seconds[name].append(time.perf_counter() - began)
        ours, peer = (statistics.median(values[1:]) for values in seconds.values())
        line = {"shape": [batch, tokens, heads, kv_heads, dims], "products_ms": 1000 * ours, "fused_ms": 1000 * peer, "ratio": peer / ours}
        shape = f"B {batch} T {tokens} H {heads}/{kv_heads} E {dims}"
        print(f"{shape}: {1000 * ours:.1f} ms against {1000 * peer:.1f} ms, {peer / ours:.1f} times")
        if options.json:
            with options.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
