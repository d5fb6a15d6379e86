"""The settings of a whole run, from token shards to scores.

Standard library only: it ships. It lies apart from the settings of training, so that these know no quantizer.
"""

from dataclasses import dataclass

from schemas.averaging_settings import AveragingSettings
from schemas.compute_settings import ComputeSettings
from schemas.quantizer_settings import AnyQuantizer, GptqLite
from schemas.scoring_settings import ScoringSettings
from schemas.settings_base import Settings, setting
from schemas.train_settings import TrainSettings


@dataclass(frozen=True)
class Recipe(Settings):
    """All that decides a run from token shards to scores: what the program that ships repeats."""

    train: TrainSettings = setting(TrainSettings(), "training")
    averaging: AveragingSettings = setting(AveragingSettings(), "which snapshots become the one model")
    quantizer: AnyQuantizer = setting(GptqLite(), "model to blob")
    scoring: ScoringSettings = setting(ScoringSettings(), "bits per byte of the blob")
    compute: ComputeSettings = setting(ComputeSettings(), "where the blob is scored")
