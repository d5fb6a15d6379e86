"""Sliding-window evaluation on the CPU, windows of 2,048 tokens 64 apart: ours against the plain loop
(benchmarks/plain_script.py).

    python -m benchmarks.evaluation [--runs 5] [--json results.jsonl]

The plain loop computes the logits of every position of every window. It is run twice: as a script has it,
with the plain model, and over our own model. Bits per byte must be those of the second to 1e-6 relative, in
the precision that `auto` means here and in float32; the plain model rounds differently in bfloat16. Weights
are random, text is the embedded corpus.
"""

import argparse
import time
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.common import Figure, Samples, compared, parser_for, report
from benchmarks.workers import Worker, demo_tokens, serve, shard_paths, sides, workers
from presets import load_preset
from schemas.compute_settings import ComputeSettings
from stages.store.machine import resolve_precision

GOAL_RATIO = 1.5
GOAL_DIFFERENCE = 1e-6
LENGTH, STRIDE = 2048, 64
# preset of the model, windows in a run, windows in a batch of the plain loop (what fits the memory of a
# script's GPU fits here)
MODELS = (("demo", 48, 32), ("record", 12, 8))
IDENTITY_WINDOWS = 4


def answer_as(side: str) -> Any:
    import torch

    from benchmarks.plain_script import PlainGPT, sliding_window_bpb
    from schemas.scoring_settings import ScoringSettings
    from stages.core.bits_per_byte import load_token_bytes
    from stages.core.distributed import compute_dtype
    from stages.core.model import GPT
    from stages.core.scoring import score
    from stages.core.shards import open_shard

    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(side == "ours")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    store, tokenized = demo_tokens()
    table = load_token_bytes(store.root / tokenized.tokenizer.path)
    columns = [torch.from_numpy(column) for column in (table.base_bytes, table.leading_space, table.boundary)]
    all_tokens = np.concatenate([open_shard(path) for path in shard_paths("val")])
    models: dict[str, Any] = {}

    def model_of(preset: str) -> Any:
        if preset not in models:
            settings = load_preset(preset).train.model
            model = GPT(settings)
            model.init_weights(0)
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for _, param in sorted(model.named_parameters()):
                    param.add_(torch.randn(param.shape, generator=generator), alpha=0.02)
            plain = PlainGPT(settings, compute_dtype(resolve_precision(ComputeSettings())))
            plain.load_state_dict(model.state_dict())
            models[preset] = (model, plain)
        return models[preset]

    class OurModel:
        """Our model as the plain loop wants one: logits of every position."""

        def __init__(self, model: GPT, dtype: torch.dtype) -> None:
            self.model, self.dtype = model, dtype

        def logits(self, ids: torch.Tensor) -> torch.Tensor:
            return self.model.logits(self.model.hidden(ids, self.dtype))

    class Stream:
        def __init__(self, tokens: np.ndarray) -> None:
            self.tokens = tokens

        def __len__(self) -> int:
            return len(self.tokens)

        def read(self, start: int, count: int) -> np.ndarray:
            return self.tokens[start : start + count].astype(np.int64)

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        tokens = all_tokens[: LENGTH + (request["windows"] - 1) * STRIDE + 1]
        model, plain = model_of(request["preset"])
        dtype = getattr(torch, request["dtype"])
        began, cpu_began = time.perf_counter(), time.process_time()
        if request["loop"] == "ours":
            settings = ScoringSettings(
                LENGTH, STRIDE, load_preset(request["preset"]).evaluate.scoring.batch_tokens
            )
            bpb = score(model, Stream(tokens), table, settings, STRIDE, dtype).bpb  # type: ignore[arg-type]
        else:
            scored = plain if request["loop"] == "plain" else OurModel(model, dtype)
            bpb = sliding_window_bpb(scored, tokens, LENGTH, STRIDE, request["batch"], *columns)
        return {"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu_began, "bpb": bpb}

    return answer


def compare(team: dict[str, Worker], preset: str, windows: int, batch: int, runs: int) -> list[Figure]:
    own = resolve_precision(ComputeSettings()).precision
    request = {"preset": preset, "windows": windows, "batch": batch, "dtype": own}
    trial = {**request, "windows": 2}
    team["ours"].ask(**trial, loop="ours")
    peer = min(
        (side for side in team if side != "ours"),
        key=lambda side: team[side].ask(**trial, loop="plain")["wall"],
    )
    samples = {"ours": Samples(), "plain": Samples(), "plain over our model": Samples()}
    bpb: dict[str, float] = {}
    for _ in range(runs):
        for loop, sample in samples.items():
            told = team["ours" if loop == "ours" else peer].ask(**request, loop=loop)
            bpb[loop] = told["bpb"]
            sample.wall.append(told["wall"])
            sample.cpu.append(told["cpu"])
    exact = {**request, "windows": IDENTITY_WINDOWS, "dtype": "float32"}
    ours = team["ours"].ask(**exact, loop="ours")["bpb"]
    theirs = team[peer].ask(**exact, loop="plain over our model")["bpb"]
    differences = {own: abs(bpb["ours"] / bpb["plain over our model"] - 1)}
    differences["float32"] = max(abs(ours / theirs - 1), differences.get("float32", 0.0))
    what = f"sliding windows, {preset} model"
    return [
        compared(
            "evaluation",
            what,
            samples["ours"],
            samples["plain"],
            GOAL_RATIO,
            windows=windows,
            peer_threads=peer,
        ),
        replace(
            compared(
                "evaluation",
                f"{what}, plain loop over our own model",
                samples["ours"],
                samples["plain over our model"],
                GOAL_RATIO,
            ),
            goal="",
            met=None,
        ),
        Figure(
            "evaluation",
            f"bits per byte, {preset} model, relative difference from the plain loop over our own model",
            ", ".join(f"{value:.0e} in {dtype}" for dtype, value in differences.items()),
            f"{bpb['ours'] / bpb['plain'] - 1:+.0e} from the plain model, {own}",
            None,
            f"≤ {GOAL_DIFFERENCE:g}",
            max(differences.values()) <= GOAL_DIFFERENCE,
            {"relative_differences": differences, "bpb": bpb, "bpb_float32": ours},
        ),
    ]


def main() -> None:
    parser = parser_for("evaluation", "Sliding-window evaluation against the plain loop.")
    parser.add_argument("--quick", action="store_true", help="fewer windows, to see that it works")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(answer_as(options.worker))
        return
    shard_paths("val")  # made once, not by every worker
    figures = []
    with workers("evaluation", sides(options.quick)) as team:
        for preset, windows, batch in MODELS[:1] if options.quick else MODELS:
            figures += compare(team, preset, 4 if options.quick else windows, batch, options.runs)
    report(figures, options.json)


if __name__ == "__main__":
    main()
