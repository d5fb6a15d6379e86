"""Settings of late quantization-aware training.

Standard library only: this class ships in the submission.
"""

from dataclasses import dataclass
from typing import Literal

from schemas.settings_base import Settings, setting
from schemas.tensor_formats import DEFAULT_RULES, FormatRule

QatGrid = Literal["of_quantizer", "round_to_nearest", "gptq_lite", "reference"]


@dataclass(frozen=True)
class QatSettings(Settings):
    """Late quantization-aware training: straight-through rounding to the grid that the exporter will use."""

    start_lr_scale: float = setting(
        0.1,
        "on once the learning-rate scale is below this; 0: never",
        unit="fraction of the peak",
        minimum=0,
        maximum=1,
    )
    rules: tuple[FormatRule, ...] = setting(DEFAULT_RULES, "format of each tensor, as in quantize.rules")
    grid: QatGrid = setting(
        "of_quantizer",
        (
            "what it rounds to. of_quantizer: a run fills in that of quantize.method; training by "
            "itself takes round_to_nearest"
        ),
    )
    clip_candidates: tuple[float, ...] = setting(
        (), "ratios that grid gptq_lite tries; filled in with it", above=0, maximum=1
    )

    def check(self) -> None:
        if (self.grid == "gptq_lite") != bool(self.clip_candidates):
            raise ValueError(
                f"clip_candidates = {self.clip_candidates} and grid = {self.grid}: gptq_lite needs ratios "
                "and no other grid takes any; leave grid at of_quantizer, which fills in both"
            )
