"""One process that scores sets of weights, started by torchrun: python -m stages.scoring.worker JOB.json
RESULT.json
"""

import json
import logging
import sys
import time
from pathlib import Path

import torch.distributed as dist
from safetensors.torch import load_file

from schemas.settings import ComputeSettings, ModelSettings, ScoringSettings
from schemas.settings_base import from_dict
from stages.core.bits_per_byte import load_token_bytes
from stages.core.distributed import compute_dtype, join_processes
from stages.core.loader import TokenStream
from stages.core.model import GPT
from stages.core.scoring import score, score_as_dict
from stages.processes.launch import child_result, say_progress


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    compute, scoring = from_dict(ComputeSettings, job["compute"]), from_dict(ScoringSettings, job["scoring"])
    with child_result(Path(sys.argv[2])) as leave:
        rank, _, device = join_processes(compute)
        table = load_token_bytes(Path(job["tokenizer"]))
        stream = TokenStream([Path(path) for path in job["shards"]])
        model = GPT(from_dict(ModelSettings, job["model"])).to(device)
        scores = {}
        for index, (name, path) in enumerate(job["weights"].items()):

            def progress(done: float, total: float, unit: str, before: int = index) -> None:
                if rank == 0:
                    say_progress(before * total + done, len(job["weights"]) * total, unit)

            model.load_state_dict(load_file(path))
            started = time.perf_counter()
            sums = score(
                model, stream, table, scoring, scoring.sequence_length, compute_dtype(compute), progress
            )
            scores[name] = score_as_dict(sums, time.perf_counter() - started)
        if rank == 0:
            leave(scores)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
