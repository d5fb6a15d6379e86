"""A submission folder in the official repository's shape: what stands in submission.json, and what a
check of any folder says.
"""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from schemas.base import Schema
from schemas.files import Sha256
from schemas.scoring_settings import Windows

README_NAME = "README.md"
INFO_NAME = "submission.json"
REQUIREMENTS_NAME = "requirements.txt"
LIMIT_SECONDS = 600.0  # of training, and of evaluation
GITHUB_ID = r"^[A-Za-z0-9][A-Za-z0-9-]{0,38}$"
ONE_LINE = r"^[^\x00-\x1f]*[^\s\x00-\x1f][^\x00-\x1f]*$"


def on_a_line(text: str) -> str:
    """`text` if it is one line, perhaps an empty one. Raises ValueError."""
    if re.search(r"[\x00-\x1f]", text):
        raise ValueError("must be one line, without control characters")
    return text


def filled_in(text: str) -> str:
    """`text` if it is not blank. Raises ValueError."""
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def github_account(text: str) -> str:
    """`text` if an account on GitHub can have that name. Raises ValueError."""
    if not re.fullmatch(GITHUB_ID, text):
        raise ValueError("must be letters, digits and hyphens, at most 39, and not begin with a hyphen")
    return text


OneLine = Annotated[str, AfterValidator(filled_in), AfterValidator(on_a_line)]


class About(Schema):
    """What only the author knows."""

    author: OneLine = Field(max_length=120, description="full name")
    github_id: Annotated[str, AfterValidator(filled_in), AfterValidator(github_account)] = Field(
        description="account on GitHub"
    )
    name: OneLine = Field(max_length=120, description="title of the submission")
    blurb: Annotated[str, AfterValidator(on_a_line)] = Field(
        "", max_length=1000, description="one or two sentences; empty: made from the settings"
    )


class SeedResult(Schema):
    """One seed of a submission. `val_*` are of sliding windows where they were scored."""

    val_loss: float = Field(description="nats a token")
    val_bpb: float
    pre_quant_val_bpb: float = Field(description="merged model, non-overlapping windows")
    wallclock_seconds: NonNegativeFloat = Field(description="training, inside the cap's clock")
    eval_time_seconds: NonNegativeFloat
    bytes_total: PositiveInt
    blob_sha256: Sha256


class SubmissionInfo(Schema):
    """submission.json. The names are those of the published records; `val_*` are means over the seeds."""

    author: str
    github_id: str
    name: str
    blurb: str
    date: str
    val_loss: float
    val_bpb: float
    pre_quant_val_loss: float
    pre_quant_val_bpb: float
    post_quant_val_bpb_non_overlapping: float
    step_stop: PositiveInt = Field(
        description="of the seed whose blob lies in the folder, as all that follows"
    )
    wallclock_seconds: NonNegativeFloat
    eval_time_seconds: NonNegativeFloat
    bytes_total: PositiveInt
    bytes_model: PositiveInt
    bytes_code: PositiveInt
    blob_sha256: Sha256
    code_sha256: Sha256
    hardware: str
    eval_sequence_length: PositiveInt
    eval_stride: NonNegativeInt
    eval_windows: Windows = "stream"
    eval_attention_window: NonNegativeInt = 0
    eval_batch_tokens: PositiveInt = Field(description="in one forward pass; the last digits depend on it")
    seed: NonNegativeInt
    seeds: tuple[NonNegativeInt, ...]
    seed_results: dict[str, SeedResult]


class RuleResult(Schema):
    """One rule applied to a folder.

    `unknown`: the folder does not say, or it cannot be decided without running its code.
    """

    rule: str
    verdict: Literal["pass", "fail", "unknown"]
    reason: str


class Rescored(Schema):
    """A folder's blob scored here."""

    val_bpb_non_overlapping: PositiveFloat
    val_bpb_sliding: PositiveFloat | None
    val_loss: PositiveFloat = Field(description="nats a token, of sliding windows where they were scored")
    num_targets: PositiveInt
    num_bytes: PositiveInt
    blob_bytes: PositiveInt
    blob_sha256: Sha256
    precision: str = Field(description="of matrix products here, and why")
    scored_by: Literal["fairway", "the folder's train_gpt.py"]
    scored_with: str = Field(description="windows of this score")
    claimed_val_bpb: float | None = Field(description="what the folder's submission.json says")
    claimed_with: str = Field(description="windows of the claim, by the same file; empty: it does not say")
    seconds: NonNegativeFloat
