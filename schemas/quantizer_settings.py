"""Settings of the quantizer.

Standard library only: these classes ship in the submission. No setting of training stands here, and training
imports none of these: a new setting of a quantizer trains nothing again.
"""

from dataclasses import dataclass
from typing import Literal

from schemas.settings import QatGrid
from schemas.settings_base import Settings, setting
from schemas.tensor_formats import DEFAULT_RULES, FormatRule

GRID_OF_METHOD: dict[str, QatGrid] = {
    "round_to_nearest": "round_to_nearest",
    "gptq": "round_to_nearest",  # error feedback chooses other levels of the same grid
    "gptq_lite": "gptq_lite",
    "reference": "reference",
}


@dataclass(frozen=True)
class CalibrationSettings(Settings):
    """The text of the training split from which gptq and ecsq learn what an error in each weight costs."""

    num_sequences: int = setting(
        128, "sequences, drawn from the whole training split by the seed", unit="sequences", minimum=1
    )
    sequence_length: int = setting(256, "tokens in each", unit="tokens", minimum=2)
    batch_sequences: int = setting(16, "sequences in one forward pass", unit="sequences", minimum=1)
    damping: float = setting(
        0.01, "added to the Hessian's diagonal", unit="share of its mean", above=0, maximum=1
    )
    seed: int = setting(
        0, "which sequences, and the targets drawn from the model's predictions", minimum=0, maximum=2**63 - 1
    )
    threads: int = setting(2, "CPU threads of the quantization", minimum=1, maximum=256)

    def sequences_in(self, num_tokens: int) -> int:
        """How many sequences a split of so many tokens has, each with the token after it."""
        return max(num_tokens - 1, 0) // self.sequence_length

    def check_text(self, num_tokens: int) -> None:
        """Raises ValueError, which begins with the setting's name, where a training split of so many
        tokens is too short.
        """
        there = self.sequences_in(num_tokens)
        if there < self.num_sequences:
            raise ValueError(
                f"calibration.num_sequences = {self.num_sequences}: the training split has {there} sequences "
                f"of {self.sequence_length} tokens; ask for fewer or shorter ones"
            )


@dataclass(frozen=True)
class EcsqSettings(Settings):
    """Entropy-constrained quantization: one number decides all steps, their shares come from the
    calibration text.
    """

    loss_nats: float = setting(
        0.001,
        "growth of the loss to spend, by the Fisher estimate; not used when fit.limit_bytes is set",
        unit="nats a token",
        above=0,
    )
    measured_shares: bool = setting(
        False,
        (
            "correct the estimate for each matrix by the divergence that quantizing it alone makes on "
            "training text"
        ),
    )
    floors: tuple[FormatRule, ...] = setting(
        (), "matrices that may be no coarser, in mean square, than this integer format for each row"
    )

    def check(self) -> None:
        for rule in self.floors:
            if not rule.format.startswith("int"):
                raise ValueError(
                    f"floors: {rule.pattern} = {rule.format}: give an integer format, int2 to int8"
                )


@dataclass(frozen=True)
class FitSettings(Settings):
    """Find the finest steps whose package is within a limit."""

    limit_bytes: int | None = setting(
        None, "bytes of script and blob together; empty: no fitting", unit="bytes", minimum=1
    )
    code_bytes: int | None = setting(
        None, "bytes of the script; empty: the pipeline measures it", unit="bytes", minimum=0
    )
    tolerance_fraction: float = setting(
        0.001, "stop once the package is this close below the limit", unit="share", above=0, maximum=0.5
    )


QuantizeMethod = Literal["gptq_lite", "round_to_nearest", "reference", "gptq", "ecsq"]
CALIBRATED_METHODS = ("gptq", "ecsq")


@dataclass(frozen=True)
class QuantizerSettings(Settings):
    """Post-training quantization.

    One symmetric integer grid per row with fp16 scales, or (ecsq) entropy-coded steps.
    """

    method: QuantizeMethod = setting(
        "gptq_lite",
        "round_to_nearest: the largest value of each row as it is; gptq_lite: clip search for each row; "
        "reference: the reference's own; gptq: error feedback on calibration text; ecsq: error feedback, "
        "steps by what errors cost, coded by rANS",
    )
    rules: tuple[FormatRule, ...] = setting(
        DEFAULT_RULES,
        (
            "format of each tensor; the first match counts. ecsq codes whatever an integer format is "
            "given, with steps of its own"
        ),
    )
    clip_candidates: tuple[float, ...] = setting(
        (1.0, 0.99, 0.98, 0.97, 0.95, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7),
        "clip ratios of the row's largest value that gptq_lite tries",
        above=0,
        maximum=1,
    )
    zstd_level: int = setting(22, "compression of the container", minimum=1, maximum=22)
    calibration: CalibrationSettings = setting(CalibrationSettings(), "text for gptq and ecsq")
    ecsq: EcsqSettings = setting(EcsqSettings(), "what ecsq spends")
    fit: FitSettings = setting(FitSettings(), "settings that meet a byte limit (ecsq)")

    def check(self) -> None:
        if not self.clip_candidates:
            raise ValueError("clip_candidates = (): give at least one ratio, for example (1.0,)")
        if not self.rules or self.rules[-1].pattern != "*":
            raise ValueError('rules: the last pattern must be "*", so that every tensor has a format')
        if self.fit.limit_bytes is not None and self.method != "ecsq":
            raise ValueError(
                f"fit.limit_bytes = {self.fit.limit_bytes}: method {self.method} has no steps to "
                "fit; set method to ecsq"
            )
