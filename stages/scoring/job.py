"""What `merge` hands to the processes that score, and what the first of them hands back."""

from pathlib import Path

from schemas.base import Schema
from schemas.evaluate import Score
from schemas.settings import ComputeSettings, ModelSettings, ScoringSettings


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
