"""Job of the worker processes that score for `merge`, and the result of the first."""

from pathlib import Path

from schemas.base import Schema
from schemas.compute_settings import ComputeSettings
from schemas.evaluate import Score
from schemas.model_settings import ModelSettings
from schemas.scoring_settings import ScoringSettings


class ScoringJob(Schema):
    """Score weights of one model, each a safetensors file with a name, on `shards` in their order."""

    model: ModelSettings
    weights: dict[str, Path]
    shards: tuple[Path, ...]
    tokenizer: Path
    scoring: ScoringSettings
    compute: ComputeSettings


class ScoredWeights(Schema):
    """The score of each set of weights, by its name in the job."""

    scores: dict[str, Score]
