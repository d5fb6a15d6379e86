"""One process that scores sets of weights: python -m stages.scoring.worker JOB.json RESULT.json"""

import time

from safetensors.torch import load_file

from schemas.evaluate import Score
from stages.core.bits_per_byte import load_token_bytes
from stages.core.distributed import compute_dtype, join_processes, leave_processes, patient_group
from stages.core.loader import TokenStream
from stages.core.model import GPT
from stages.core.scoring import score, score_as_dict
from stages.processes.launch import job_of, say_progress
from stages.scoring.job import ScoredWeights, ScoringJob


def main() -> None:
    with job_of(ScoringJob) as (job, leave):
        rank, _, device = join_processes(job.compute)
        group = patient_group()
        table, stream = load_token_bytes(job.tokenizer), TokenStream(list(job.shards))
        model = GPT(job.model).to(device)
        length, dtype = job.scoring.sequence_length, compute_dtype(job.compute)
        scores: dict[str, Score] = {}
        for name, path in job.weights.items():

            def progress(done: float, total: float, unit: str, before: int = len(scores)) -> None:
                if rank == 0:
                    say_progress(before * total + done, len(job.weights) * total, unit)

            model.load_state_dict(load_file(path))
            started = time.perf_counter()
            sums = score(model, stream, table, job.scoring, length, dtype, progress, group)
            scores[name] = Score.model_validate(score_as_dict(sums, time.perf_counter() - started))
        if rank == 0:
            leave(ScoredWeights(scores=scores))
    leave_processes()


if __name__ == "__main__":
    main()
