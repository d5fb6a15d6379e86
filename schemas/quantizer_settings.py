"""Settings of the quantizers: each has a class of its own, and `method` says which.

Standard library only: these classes ship in the submission. No setting of training stands here, and training
imports none of these: a new setting of a quantizer trains nothing again. What a run must know of a quantizer
before torch is imported is a fact of its class: whether it reads text, whether it can meet a byte limit, and
what late QAT rounds to for it.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeVar, get_args

from schemas.qat_settings import QatGrid
from schemas.settings_base import Settings, setting
from schemas.tensor_formats import DEFAULT_RULES, FormatRule

Fitting = TypeVar("Fitting", bound="FittingSettings")

DEFAULT_NUM_SEQUENCES = 128


@dataclass(frozen=True)
class CalibrationSettings(Settings):
    """The text of the training split from which a quantizer learns what an error in each weight costs."""

    num_sequences: int | None = setting(
        None,
        "sequences, drawn from the whole training split by the seed; empty: 128, or all of fewer",
        unit="sequences",
        minimum=1,
    )
    sequence_length: int = setting(256, "tokens in each", unit="tokens", minimum=2)
    batch_sequences: int = setting(16, "sequences in one forward pass", unit="sequences", minimum=1)
    damping: float = setting(
        0.01, "added to the Hessian's diagonal", unit="share of its mean", above=0, maximum=1
    )
    seed: int = setting(
        0, "which sequences, and the targets drawn from the model's predictions", minimum=0, maximum=2**63 - 1
    )
    device: Literal["cpu", "cuda"] = setting(
        "cpu", "where the model reads the text and its matrices are rounded"
    )
    precision: Literal["bfloat16", "float32"] = setting(
        "float32", "of the model's products while it reads the text; sums over tokens are in float32"
    )
    threads: int = setting(2, "CPU threads of the quantization", minimum=1, maximum=256)

    def sequences_in(self, num_tokens: int) -> int:
        """How many sequences a split of so many tokens has, each with the token after it."""
        return max(num_tokens - 1, 0) // self.sequence_length

    def count_in(self, num_tokens: int) -> int:
        """How many sequences are drawn from a training split of so many tokens.

        Raises ValueError, which begins with the setting's name, where the split is too short.
        """
        there = self.sequences_in(num_tokens)
        if self.num_sequences is None:
            if there == 0:
                raise ValueError(
                    f"calibration.sequence_length = {self.sequence_length}: the training split has "
                    f"{num_tokens} tokens, not one sequence; ask for shorter ones"
                )
            return min(DEFAULT_NUM_SEQUENCES, there)
        if there < self.num_sequences:
            raise ValueError(
                f"calibration.num_sequences = {self.num_sequences}: the training split has {there} sequences "
                f"of {self.sequence_length} tokens; ask for fewer or shorter ones"
            )
        return self.num_sequences


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

    @property
    def lacks_code(self) -> bool:
        """Whether a limit is to be met and the bytes of the script are not known yet."""
        return self.limit_bytes is not None and self.code_bytes is None


@dataclass(frozen=True)
class QuantizerSettings(Settings):
    """What the settings of all quantizers share.

    A quantizer is a subclass with a `method` of its own, a member of AnyQuantizer, and an entry in
    stages.core.calibrated.table.
    """

    qat_grid: ClassVar[QatGrid | None] = None
    """What late QAT rounds to for it; None: its steps are not known before training has ended."""

    method: str = setting("", "how matrices are quantized")
    rules: tuple[FormatRule, ...] = setting(DEFAULT_RULES, "format of each tensor; the first match counts")
    zstd_level: int = setting(22, "compression of the container", minimum=1, maximum=22)

    def check(self) -> None:
        if not self.rules or self.rules[-1].pattern != "*":
            raise ValueError('rules: the last pattern must be "*", so that every tensor has a format')

    @property
    def qat_clip_candidates(self) -> tuple[float, ...]:
        """The clip ratios that late QAT tries for it; empty for a grid without a search."""
        return ()

    @property
    def limit_bytes(self) -> int | None:
        """The bytes that the package is fitted to; None: it is not fitted."""
        return None


@dataclass(frozen=True)
class CalibratedSettings(QuantizerSettings):
    """Settings of a quantizer that reads text of the training split."""

    calibration: CalibrationSettings = setting(CalibrationSettings(), "the text that it reads")


@dataclass(frozen=True)
class FittingSettings(CalibratedSettings):
    """Settings of a quantizer that chooses its steps itself, and so can meet a byte limit.

    To it an integer format in the rules says which tensors it quantizes, not in how many bits.
    """

    fit: FitSettings = setting(FitSettings(), "steps that meet a byte limit")

    @property
    def limit_bytes(self) -> int | None:
        return self.fit.limit_bytes

    def with_code(self: Fitting, code_bytes: int) -> Fitting:
        """The settings where the script has so many bytes."""
        return replace(self, fit=replace(self.fit, code_bytes=code_bytes))


@dataclass(frozen=True)
class RoundToNearest(QuantizerSettings):
    """Plain rounding: one symmetric integer grid for each row, with fp16 scales."""

    qat_grid: ClassVar[QatGrid | None] = "round_to_nearest"

    method: Literal["round_to_nearest"] = setting(
        "round_to_nearest", "each row's largest value is its outermost level"
    )


@dataclass(frozen=True)
class GptqLite(QuantizerSettings):
    """The grid of plain rounding, with a clip ratio for each row."""

    qat_grid: ClassVar[QatGrid | None] = "gptq_lite"

    method: Literal["gptq_lite"] = setting("gptq_lite", "clip search for each row")
    clip_candidates: tuple[float, ...] = setting(
        (1.0, 0.99, 0.98, 0.97, 0.95, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7),
        "clip ratios of the row's largest value that are tried",
        above=0,
        maximum=1,
    )

    def check(self) -> None:
        super().check()
        if not self.clip_candidates:
            raise ValueError("clip_candidates = (): give at least one ratio, for example (1.0,)")

    @property
    def qat_clip_candidates(self) -> tuple[float, ...]:
        return self.clip_candidates


@dataclass(frozen=True)
class Reference(QuantizerSettings):
    """The reference's own scheme, its faults included."""

    qat_grid: ClassVar[QatGrid | None] = "reference"

    method: Literal["reference"] = setting("reference", "the reference's own scheme")


@dataclass(frozen=True)
class Gptq(CalibratedSettings):
    """The grid of plain rounding, with error feedback."""

    # Error feedback chooses other levels of the same grid.
    qat_grid: ClassVar[QatGrid | None] = "round_to_nearest"

    method: Literal["gptq"] = setting("gptq", "error feedback on calibration text")
    row_deviations: float | None = setting(
        None,
        (
            "the outermost level stands for so many standard deviations of its row (SDClip); empty: for the "
            "row's largest value"
        ),
        unit="standard deviations",
        above=0,
    )
    embedding_deviations: float | None = setting(
        None,
        "the same for the token embedding and an output head; empty: row_deviations",
        unit="standard deviations",
        above=0,
    )

    def deviations_for(self, name: str) -> float | None:
        """Standard deviations for the matrix `name`; None: its rows' largest values."""
        vocabulary = name.startswith(("tok_emb.", "head."))
        chosen = self.embedding_deviations if vocabulary else None
        return self.row_deviations if chosen is None else chosen


@dataclass(frozen=True)
class Ecsq(FittingSettings):
    """Entropy-constrained quantization: one number decides all steps, their shares come from the
    calibration text.
    """

    method: Literal["ecsq"] = setting(
        "ecsq", "error feedback on calibration text, steps by what errors cost, coded by rANS"
    )
    loss_budget_nats: float = setting(
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
        super().check()
        for rule in self.floors:
            if not rule.format.startswith("int"):
                raise ValueError(
                    f"floors: {rule.pattern} = {rule.format}: give an integer format, int2 to int8"
                )


AnyQuantizer = RoundToNearest | GptqLite | Reference | Gptq | Ecsq
"""The settings of one quantizer; `method` says of which."""
QUANTIZER_OF_METHOD: dict[str, type[AnyQuantizer]] = {kind.method: kind for kind in get_args(AnyQuantizer)}
