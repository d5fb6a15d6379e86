"""Evaluation: the package and the validation shards in; bits per byte of what ships out."""

from typing import Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, field_validator, model_validator

from schemas.base import Schema, Volatile
from schemas.compute_settings import ComputeSettings
from schemas.introspect import number
from schemas.lora_settings import LoraSettings
from schemas.scoring_settings import ScoringSettings, Windows


class Score(Schema):
    """bpb = (nll_nats_sum / ln 2) / num_bytes over targets that were each scored once."""

    bpb: float
    loss: float = Field(description="nats per target")
    nll_nats_sum: float
    num_targets: PositiveInt
    num_bytes: PositiveInt = Field(description="UTF-8 bytes that the scored tokens stand for")
    num_bos_targets: NonNegativeInt
    bos_nats_sum: float = Field(
        description="share of nll_nats_sum spent on predicting BOS, which stands for no byte"
    )
    windows: Windows = Field(
        "stream", description="over the stream of tokens, or inside each document; not comparable"
    )
    seconds: Volatile[NonNegativeFloat]

    @property
    def mode(self) -> str:
        """What its windows are, after the word "windows"."""
        return " inside documents" if self.windows == "documents" else ""


def only_scores(compute: ComputeSettings) -> ComputeSettings:
    """For stages that train nothing.

    Raises ValueError for what only training does: it would be ignored without a word.
    """
    for name in ("compile", "fused_kernels"):
        if getattr(compute, name):
            raise ValueError(f"{name} = true: only training does that, scoring never; leave it false here")
    if compute.num_nodes > 1:
        raise ValueError(
            f"num_nodes = {compute.num_nodes}: only training uses several machines; leave it at 1 here"
        )
    return compute


class EvaluateSpec(Schema):
    scoring: ScoringSettings = Field(default_factory=ScoringSettings, description="windows")
    compute: ComputeSettings = Field(
        default_factory=ComputeSettings, description="where the package is scored"
    )

    test_time_training: LoraSettings = Field(
        default_factory=LoraSettings, description="a score with a LoRA for each document"
    )

    _scores_only = field_validator("compute")(only_scores)

    @model_validator(mode="after")
    def _chunks_fit(self) -> "EvaluateSpec":
        lora, length = self.test_time_training, self.scoring.sequence_length
        if lora.on and lora.chunk_tokens > length:
            raise ValueError(
                f"test_time_training.chunk_tokens = {lora.chunk_tokens}: must be at most "
                f"scoring.sequence_length = {length}"
            )
        return self

    def identity(self) -> Any:
        """Without test-time training where it is off: earlier runs keep their names."""
        known = super().identity()
        if not self.test_time_training.on:
            del known["test_time_training"]
        return known


class LoraScores(Schema):
    """Scores with and without a LoRA for each document that learns from what is scored already.

    Both are of the same windows: inside documents, `chunk_tokens` apart.
    """

    adapted: Score | None = Field(description="None: the clock ran out")
    without: Score
    num_documents: PositiveInt
    num_steps: NonNegativeInt = Field(description="steps of all documents together")
    done_share: float = Field(description="share of the targets scored; 1, unless the clock ran out")
    seconds: Volatile[NonNegativeFloat]

    @property
    def gain_bpb(self) -> float | None:
        """Bits per byte with it minus without; None where the clock ran out."""
        return None if self.adapted is None else self.adapted.bpb - self.without.bpb


class Evaluation(Schema):
    """The scores of what ships, and the check of their denominator."""

    non_overlapping: Score
    sliding: Score | None
    test_time_training: LoraScores | None = Field(
        None, description="a figure of its own, not comparable with the others; None: off"
    )
    text_utf8_bytes: NonNegativeInt | None = Field(
        description="validation text as it came; None for ready-made shards"
    )
    text_normalized_bytes: NonNegativeInt | None = Field(
        description="the same after the tokenizer's normalisation"
    )
    byte_account: str = Field(description="how the token bytes compare with the text")

    @property
    def test_time_training_seconds(self) -> float | None:
        """Seconds on its clock; None where it is off."""
        return self.test_time_training.seconds if self.test_time_training else None


def how_sliding(stride: str, attention_window: str) -> str:
    """How the targets of the second score get their long context, by these settings as a table shows them;
    empty where there is no such score or the settings are unknown.
    """
    if attention_window not in ("", "0"):
        return f"attention over {attention_window} tokens"
    return f"stride {stride}" if stride not in ("", "0") else ""


def sliding_of(scoring: ScoringSettings) -> str:
    """`how_sliding` of these settings."""
    return how_sliding(number(scoring.stride), number(scoring.attention_window))


def windows_of(scoring: ScoringSettings) -> str:
    """The windows in words: `windows of 2,048 tokens over the stream`."""
    where = {"stream": "over the stream", "documents": "inside documents"}[scoring.windows]
    return f"windows of {scoring.sequence_length:,} tokens {where}"


def scored_with(scoring: ScoringSettings) -> str:
    """`windows_of`, and how the second score gets its long context, if there is one."""
    return "; ".join(part for part in (windows_of(scoring), sliding_of(scoring)) if part)
