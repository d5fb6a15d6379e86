"""Settings of averaging.

Standard library only: this class ships in the submission.
"""

from dataclasses import dataclass
from typing import Literal

from schemas.settings_base import Settings, setting


@dataclass(frozen=True)
class AveragingSettings(Settings):
    """Which snapshots become the one model."""

    method: Literal["swa", "ema", "ema_of_steps", "last"] = setting(
        "swa",
        (
            "swa: uniform mean of snapshots; ema: their exponential mean; ema_of_steps: the mean that "
            "train.snapshots.ema_horizon kept in training; last: the last iterate alone"
        ),
    )
    start_lr_scale: float = setting(
        0.2,
        "snapshots taken below this learning-rate scale take part",
        unit="fraction of the peak",
        minimum=0,
        maximum=1,
    )
    every_nth: int = setting(1, "use every n-th snapshot of the window, counted from its end", minimum=1)
    ema_decay: float = setting(
        0.7, "weight kept from one snapshot to the next (method ema)", minimum=0, maximum=0.9999
    )
