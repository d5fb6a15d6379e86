"""Evaluation: the package and the validation shards in; bits per byte of what ships out."""

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, field_validator

from schemas.base import Schema, Volatile
from schemas.settings import ComputeSettings, ScoringSettings, Windows


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
            raise ValueError(
                f"{name} = true: only training does that, scoring never; leave {name} false here"
            )
    if compute.num_nodes > 1:
        raise ValueError(
            f"num_nodes = {compute.num_nodes}: only training uses several machines; leave num_nodes 1 here"
        )
    return compute


class EvaluateSpec(Schema):
    scoring: ScoringSettings = Field(default_factory=ScoringSettings, description="windows")
    compute: ComputeSettings = Field(
        default_factory=ComputeSettings, description="where the package is scored"
    )

    _scores_only = field_validator("compute")(only_scores)


class Evaluation(Schema):
    """The scores of what ships, and the check of their denominator."""

    non_overlapping: Score
    sliding: Score | None
    text_utf8_bytes: NonNegativeInt | None = Field(
        description="validation text as it came; None for ready-made shards"
    )
    text_normalized_bytes: NonNegativeInt | None = Field(
        description="the same after the tokenizer's normalisation"
    )
    byte_account: str = Field(description="how the token bytes compare with the text")
