"""The process that benchmarks: python -m stages.benchmarking.worker JOB.json RESULT.json

In: a `BenchmarkJob`. Out: a `Benchmark`. The harness and its libraries are loaded here and nowhere else.
"""

import copy
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from safetensors.torch import load_file

from schemas.benchmark import Benchmark
from stages.benchmarking.job import BenchmarkJob
from stages.benchmarking.likelihood import TokenScorer
from stages.core.distributed import compute_dtype, join_processes
from stages.core.model import GPT
from stages.core.program import load_packed_model
from stages.corpora.sources import ready_made_tokenizer
from stages.processes.launch import job_of, say_progress
from stages.sampling.generator import Generator


def main() -> None:
    with job_of(BenchmarkJob) as (job, leave):
        _surroundings(job)
        # Not before: the libraries read their environment when they are imported.
        from stages.benchmarking.harness import harness_version, load_tasks, measure
        from stages.benchmarking.lm import FairwayLM

        started = time.perf_counter()
        tasks = load_tasks(job.spec.tasks, job.own_tasks)
        _, _, device = join_processes(job.spec.compute)
        model = _model(job, device)
        spec = job.spec
        scorer = TokenScorer(model, spec.sequence_length, spec.batch_tokens, compute_dtype(spec.compute))
        # Text is written on the CPU, wherever the rest is computed.
        writer = model if device.type == "cpu" else copy.deepcopy(model).cpu()
        generator = Generator(writer, ready_made_tokenizer(job.tokenizer, "tokenizer"), spec.sequence_length)
        with _only_with_an_error():
            scores = measure(FairwayLM(scorer, generator, say_progress), tasks, spec)
        leave(
            Benchmark(
                weights=job.weights,
                harness=harness_version(),
                limit=spec.limit,
                scores=scores,
                seconds=time.perf_counter() - started,
            )
        )


def _surroundings(job: BenchmarkJob) -> None:
    """Data sets go where the user has them, else into the store; nothing is counted or drawn."""
    os.environ.setdefault("HF_HOME", str(job.cache))
    os.environ.update(
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_DATASETS_DISABLE_PROGRESS_BARS="1",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        TOKENIZERS_PARALLELISM="false",
        HF_HUB_VERBOSITY="error",  # each of its tries would be two lines
        TQDM_DISABLE="1",
    )
    for name in ("lm_eval", "datasets", "evaluate"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if job.own_tasks is not None:
        os.chdir(job.own_tasks)  # relative data files of a task begin there


@contextmanager
def _only_with_an_error() -> Iterator[None]:
    """What comes on standard error is shown only if the block fails: progress bars, and what git says outside
    of a repository.
    """
    kept = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        except BaseException:
            aside.seek(0)
            os.write(kept, aside.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _model(job: BenchmarkJob, device: torch.device) -> GPT:
    if job.weights == "packed":
        return load_packed_model(job.file, device)
    model = GPT(job.model)
    model.load_state_dict(load_file(job.file))
    return model.to(device)


if __name__ == "__main__":
    main()
