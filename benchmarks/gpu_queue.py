"""Several runs of `benchmarks.gpu_chain` with several seeds on the cards of one machine, and their table.

    python -m benchmarks.gpu_queue --cards 0,1 --seeds 1337,1338,1339 --store /tmp/store --json rows.jsonl \\
        --run 'reference: reference train.data.batch_tokens=196608' --run 'winner: winner-1gpu' \\
        -- --corpus 'english-*.parquet' --seconds 300 --context 4096
    python -m benchmarks.gpu_queue --show rows.jsonl

A card trains one run at a time, and nothing else uses it meanwhile: the clock limits the training, so a
neighbour would cost it steps. A card without a training left does the later stages, several at once. All
trainings of a seed come before those of the next one. `--later` names a run whose training another one
has, with other settings of later stages: another quantizer, for example. It is done with the first seed.
`--without` names a run and a seed that are left out, as `winner-1337`.

What follows `--` goes to each `gpu_chain`. The same command again continues: the store has what was finished.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from typing import Any

COLUMNS = {
    "steps": "{:,.0f}",
    "ms_a_step": "{:.1f}",
    "bpb_merged": "{:.4f}",
    "bpb_quantized": "{:.4f}",
    "bpb_sliding": "{:.4f}",
    "total_bytes": "{:,.0f}",
}


@dataclass(frozen=True)
class Job:
    """One run with one seed."""

    run: str
    seed: str

    @property
    def name(self) -> str:
        return f"{self.run.partition(':')[0]}-{self.seed}".replace(" ", "-")


@dataclass
class Work:
    """What is left to train, what waits for its later stages, and what failed."""

    jobs: Sequence[Job]
    later: Sequence[Job]
    command: Sequence[str]
    logs: Path
    to_train: Queue[Job] = field(default_factory=Queue)
    trained: Queue[Job | None] = field(default_factory=Queue)
    failed: list[str] = field(default_factory=list)
    interrupted: bool = False

    def __post_init__(self) -> None:
        for job in self.jobs:
            self.to_train.put(job)

    def chain(self, job: Job, card: str, until: str) -> bool:
        """Whether `gpu_chain` came to the end of the stage `until` on this card; not begun after Ctrl-C."""
        if self.interrupted:
            return False
        log = self.logs / f"{job.name}-{until}.log"
        print(f"card {card}: {job.name} until {until}, log in {log}", flush=True)
        with log.open("w") as lines:
            status = subprocess.run(
                [*self.command, "--run", job.run, "--seed", job.seed, "--until", until],
                env=os.environ | {"CUDA_VISIBLE_DEVICES": card},
                stdin=subprocess.DEVNULL,
                stdout=lines,
                stderr=subprocess.STDOUT,
            ).returncode
        if status:
            self.failed.append(f"{job.name} until {until}: status {status}, see {log}")
        return status == 0

    def train(self, card: str) -> None:
        """Train on this card until nothing is left to train."""
        while True:
            try:
                job = self.to_train.get_nowait()
            except Empty:
                return
            if self.chain(job, card, "train"):
                self.trained.put(job)

    def finish(self, card: str, own_trainings: "Future[None]") -> None:
        """The later stages of trained jobs on this card, once it has no training left."""
        own_trainings.result()
        while job := self.trained.get():
            self.chain(job, card, "evaluate")


def run_all(work: Work, cards: Sequence[str], side_by_side: int) -> None:
    """Every job, from its text to its score. `work.failed` names what did not end well."""
    with ThreadPoolExecutor(max_workers=len(cards) * (1 + side_by_side)) as pool:
        trainings = [pool.submit(work.train, card) for card in cards]
        finishing = [
            pool.submit(work.finish, card, training)
            for card, training in zip(cards, trainings, strict=True)
            for _ in range(side_by_side)
        ]
        try:
            for training in trainings:
                training.result()
            for job in [*work.later, *[None] * len(finishing)]:
                work.trained.put(job)
            for finished in finishing:
                finished.result()
        except KeyboardInterrupt:
            work.interrupted = True
            for _ in finishing:
                work.trained.put(None)
            raise


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Markdown: mean ± standard deviation over the seeds of each run; a run and seed counts once."""
    by_run: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        if row.get("bpb_quantized") is not None and "error" not in row:
            by_run[row["run"]][row["seed"]] = row
    contexts = sorted({int(c) for seeds in by_run.values() for row in seeds.values() for c in _contexts(row)})
    names = ["run", "seeds", *COLUMNS, *(f"bpb_quantized in {context}" for context in contexts)]
    lines = [f"| {' | '.join(names)} |", f"|---|{'--:|' * (len(names) - 1)}"]
    for run, seeds in by_run.items():
        cells = [run, ", ".join(map(str, sorted(seeds)))]
        for column, form in COLUMNS.items():
            cells.append(_spread([row.get(column) for row in seeds.values()], form))
        for context in contexts:
            cells.append(_spread([_contexts(row).get(str(context)) for row in seeds.values()], "{:.4f}"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _contexts(row: dict[str, Any]) -> dict[str, float]:
    found: dict[str, float] = row.get("bpb_by_context") or {}
    return found


def _spread(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return ""
    mean = form.format(statistics.fmean(known))
    return f"{mean} ± {form.format(statistics.stdev(known))}" if len(known) > 1 else mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", action="append", default=[], help="'name: preset setting=value …'")
    parser.add_argument("--later", action="append", default=[], help="the same, trained as another run")
    parser.add_argument("--seeds", default="1337", help="commas between them")
    parser.add_argument("--without", action="append", default=[], help="NAME-SEED that is left out")
    parser.add_argument("--cards", default="0", help="numbers of the GPUs, commas between them")
    parser.add_argument("--side-by-side", type=int, default=3, help="later stages at once on an idle card")
    parser.add_argument("--store", default=".fairway")
    parser.add_argument("--json", type=Path, help="rows of figures; logs lie in a folder beside it")
    parser.add_argument("--show", type=Path, help="only print the table of these rows")
    parser.add_argument("rest", nargs="*", help="after --: arguments of gpu_chain")
    options = parser.parse_args()
    rows = options.show or options.json
    if rows is None or not (options.show or options.run):
        parser.error("give --run and --json, or --show")
    if options.show and not rows.is_file():
        parser.error(f"--show {rows}: no such file")
    names = [run.partition(":")[0] for run in (*options.run, *options.later)]
    if len(set(names)) < len(names):
        parser.error(f"two runs have one name: {', '.join(names)}")
    if options.side_by_side < 1:
        parser.error(f"--side-by-side {options.side_by_side}: give 1 or more")
    failed: list[str] = []
    if not options.show:
        logs = rows.with_suffix(".logs")
        logs.mkdir(parents=True, exist_ok=True)
        chain = [sys.executable, "-m", "benchmarks.gpu_chain", "--store", options.store, "--json", str(rows)]
        seeds = options.seeds.split(",")
        jobs = [Job(run, seed) for seed in seeds for run in options.run]
        if unknown := set(options.without) - {job.name for job in jobs}:
            parser.error(
                f"--without {', '.join(sorted(unknown))}: the runs are {', '.join(j.name for j in jobs)}"
            )
        jobs = [job for job in jobs if job.name not in options.without]
        later = [Job(run, seeds[0]) for run in options.later]
        work = Work(jobs, later, [*chain, *options.rest], logs)
        runs = [word for run in (*options.run, *options.later) for word in ("--run", run)]
        if subprocess.run([*work.command, *runs, "--check"]).returncode:
            sys.exit(2)
        try:
            run_all(work, options.cards.split(","), options.side_by_side)
        except KeyboardInterrupt:
            sys.exit(130)
        failed = work.failed
    lines = rows.read_text(encoding="utf-8").splitlines() if rows.is_file() else []
    print(table(json.loads(line) for line in lines))
    for failure in failed:
        print(failure, file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
