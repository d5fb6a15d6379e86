"""How OpenMP's threads should wait at barriers: the demo's training alone on the machine and beside one
busy process.

    python -m benchmarks.threads [--runs 5] [--json results.jsonl]

Each way of waiting is an environment of our training process; stages/processes/launch.py chooses between two
of them by what the cores do. No part of `make bench`: it informs docs/decisions/0007-threads-spin-or-wait.md.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.common import Figure, Samples, parser_for, report
from benchmarks.training import SEEDS
from benchmarks.workers import Worker, shard_paths
from stages.processes.launch import MEMORY, WAIT

WAYS = {
    "passive": {**MEMORY, **WAIT},
    **{
        f"spins {count:,} times": {**MEMORY, "GOMP_SPINCOUNT": str(count)}
        for count in (100, 500, 2_000, 10_000)
    },
    "default": MEMORY,
}


@contextmanager
def busy(there: bool) -> Iterator[None]:
    """One other process that always wants a core, or none."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if there else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def main() -> None:
    parser = parser_for("threads", "Ways of waiting at barriers, idle and beside a busy process.")
    parser.add_argument("--steps", type=int, default=15, help="timed steps of a run (default: %(default)s)")
    options = parser.parse_args()
    shard_paths("train")
    samples = {(way, there): Samples() for there in (False, True) for way in WAYS}
    for way, environment in WAYS.items():
        worker = Worker("training", "ours", 2, environment)
        for there in (False, True):
            with busy(there):
                for run in range(options.runs):
                    told = worker.ask(
                        batch_tokens=2_048,
                        micro_batch=8,
                        num_steps=options.steps,
                        seed=SEEDS[run % len(SEEDS)],
                    )
                    samples[way, there].wall.append(told["wall"] / options.steps)
        worker.close()
    figures = []
    for (way, there), sample in samples.items():
        base = samples["passive", there].median
        what = f"{'beside a busy process' if there else 'idle'}: {way}"
        figures.append(
            Figure(
                "threads",
                what,
                f"{1000 * sample.median:.0f} ms a step",
                "",
                base / sample.median,
                details={"seconds": sample.wall},
            )
        )
    report(figures, options.json)


if __name__ == "__main__":
    main()
