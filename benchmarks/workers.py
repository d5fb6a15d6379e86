"""One long-lived process for each side of a comparison, asked in turn: imports and warm-up are paid once,
and each side has its own environment, as it would have when run alone.

A benchmark module calls `serve` when it is started with `--worker SIDE`; its main process holds a `Worker`
for each side.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT
from presets import load_preset
from schemas.compute_settings import ComputeSettings
from schemas.runtime import RunOptions
from schemas.tokenize_corpus import TokenizedCorpus
from stages.corpora import locate
from stages.execution.runner import run_stage
from stages.processes.launch import MEMORY, SPIN_BRIEFLY, WAIT, waiting
from stages.store.store import Store


class Worker:
    """`ask` sends a request and waits for the answer; the other workers sleep meanwhile."""

    def __init__(self, module: str, side: str, threads: int, environment: dict[str, str]) -> None:
        clean = {
            key: value for key, value in os.environ.items() if key not in {*MEMORY, *SPIN_BRIEFLY, *WAIT}
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{module}", "--worker", side],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**clean, **environment, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)},
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Raises RuntimeError when the worker ended; what it said of that stands on standard error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"a benchmark's worker ended with status {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def workers(module: str, sides: dict[str, dict[str, str]], threads: int = 2) -> Iterator[dict[str, Worker]]:
    """A worker for each side with the environment given for it, all ended with the block."""
    started: dict[str, Worker] = {}
    try:
        for side, environment in sides.items():
            started[side] = Worker(module, side, threads, environment)
        yield started
    finally:
        for worker in started.values():
            worker.close()


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """In a worker: answer requests until there are no more."""
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


def our_environment() -> dict[str, str]:
    """What stages/processes/launch.py would now give a process of two threads."""
    return {**MEMORY, **waiting(ComputeSettings(threads_per_process=2))}


def sides(quick: bool) -> dict[str, dict[str, str]]:
    """Ours, and the plain script's two ways: OpenMP's default of spinning at barriers, and waiting, which
    helps on a busy machine.
    """
    return {"ours": our_environment(), **({} if quick else {"spinning": {}}), "waiting": WAIT}


def demo_tokens() -> tuple[Store, TokenizedCorpus]:
    """The demo's shards of the embedded corpus, made in the store that FAIRWAY_STORE names where it lacks
    them.
    """
    store = Store(os.environ.get("FAIRWAY_STORE") or ROOT / ".fairway")
    spec = load_preset("demo").tokenize
    manifest = locate(spec, store.hashes)
    outcome = run_stage(
        store, "tokenize_corpus", spec, {"manifest": manifest}, RunOptions(store=str(store.root))
    )
    return store, outcome.record.result


def shard_paths(split: str) -> list[Path]:
    """The demo's shards of "train" or "val"."""
    store, tokenized = demo_tokens()
    refs = tokenized.train_shards if split == "train" else tokenized.val_shards
    return [store.root / ref.path for ref in refs]
