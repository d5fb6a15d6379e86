"""Size check: the package in; bytes on disk against the limit out."""

from pydantic import Field, NonNegativeInt, PositiveInt

from schemas.base import Schema

SIZE_LIMIT_BYTES = 16_000_000  # decimal, as the challenge counts


class CheckSizeSpec(Schema):
    limit_bytes: PositiveInt = Field(SIZE_LIMIT_BYTES, description="bytes that the shipped files may have together")


class SizePart(Schema):
    """A contributor to the total: a file, or a tensor group inside the blob."""

    name: str
    num_bytes: NonNegativeInt


class SizeReport(Schema):
    """Whether it fits. Over the limit is a result, not an error: the flow fails only after the report is written."""

    limit_bytes: PositiveInt
    total_bytes: PositiveInt
    code_bytes: PositiveInt
    model_bytes: PositiveInt
    margin_bytes: int = Field(description="limit minus total; negative when over")
    fits: bool
    files: tuple[SizePart, ...]
    tensor_groups: tuple[SizePart, ...] = Field(
        description="the blob's bytes by tensor group, in proportion to each tensor compressed alone"
    )
    largest: tuple[SizePart, ...] = Field(description="the three largest contributors")
