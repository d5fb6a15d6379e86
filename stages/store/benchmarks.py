"""Stored benchmarks: which belong to which run.

A benchmark belongs to every run whose packed or merged model it measured, and stays while one of them does.
It needs neither Prefect nor torch.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

from schemas.base import fingerprint
from schemas.benchmark import BENCHMARK, Benchmark, BenchmarkedModel
from schemas.errors import on_one_line
from schemas.files import StageRecord
from schemas.results import RunResults
from schemas.sample import Weights
from schemas.stages import KNOWN_STAGES
from stages.core.checksummed import read_checksummed
from stages.store.store import RECORD_NAME

log = logging.getLogger(__name__)


def benchmarks_of(root: Path, run: RunResults) -> list[Benchmark]:
    """What is stored in `root` about the models of a run, the oldest first.

    Of several answers to one question, by earlier code or another version of the library, the newest counts.
    """
    # Records name whole seconds; within one the file's own time decides.
    found = sorted(
        _of_runs(root, [run]),
        key=lambda item: (item[1].provenance.created_at, (item[0] / RECORD_NAME).stat().st_mtime_ns),
    )
    newest = dict[tuple[str, ...], StageRecord]()
    for _, record in found:
        question = (fingerprint(record.spec), *record.provenance.inputs.values())
        newest.pop(question, None)
        newest[question] = record
    return [record.result for record in newest.values()]


def benchmark_folders(root: Path, runs: Sequence[RunResults]) -> set[str]:
    """The folders of these benchmarks, relative to `root`."""
    return {folder.relative_to(root).as_posix() for folder, _ in _of_runs(root, runs)}


def _of_runs(root: Path, runs: Sequence[RunResults]) -> Iterator[tuple[Path, StageRecord]]:
    models = {
        fingerprint(BenchmarkedModel.of_run(run, weights)) for run in runs for weights in get_args(Weights)
    }
    stage = KNOWN_STAGES[BENCHMARK]
    for path in sorted(root.glob(f"stages/{BENCHMARK}/*/{RECORD_NAME}")):
        try:
            record = stage.record_type().model_validate_json(read_checksummed(path))
        except (OSError, ValueError) as error:  # `fairway verify` names it, and gc removes it
            log.warning("%s: left out: %s", path, on_one_line(error))
            continue
        if record.provenance.inputs["model"] in models:
            yield path.parent, record
