"""Job of the process that benchmarks, which returns a `Benchmark`."""

from pathlib import Path

from schemas.base import Schema
from schemas.benchmark import BenchmarkSpec
from schemas.model_settings import ModelSettings
from schemas.sample import Weights


class BenchmarkJob(Schema):
    """Measure the model in `file` by the tasks of `spec`. `own_tasks`: folder of the user's own; `cache`: for
    data sets and what the libraries keep.
    """

    spec: BenchmarkSpec
    weights: Weights
    file: Path
    model: ModelSettings
    tokenizer: Path
    own_tasks: Path | None
    cache: Path
