"""Size check: the package in; bytes on disk against the limit out."""

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from schemas.base import Schema

SIZE_LIMIT_BYTES = 16_000_000  # decimal, as the challenge counts


class CheckSizeSpec(Schema):
    limit_bytes: PositiveInt = Field(
        SIZE_LIMIT_BYTES, description="bytes that the shipped files may have together"
    )


class SizePart(Schema):
    """A contributor to the total: a file, or a tensor group inside the blob."""

    name: str
    num_bytes: NonNegativeInt


class TensorGroup(SizePart):
    """Tensors of one role, their share of the blob, and what coding each stored number by itself would
    take.
    """

    num_weights: NonNegativeInt = Field(
        0, description="0: the header, and reports from before this was counted"
    )
    entropy_bits: NonNegativeFloat = Field(
        0.0, description="order-0 entropy of the stored numbers of each tensor, bits a weight"
    )

    @property
    def bits_per_weight(self) -> float:
        """In the blob, with scales or steps and tables; 0 for the header."""
        return 8 * self.num_bytes / self.num_weights if self.num_weights else 0.0


class SizeReport(Schema):
    """Whether it fits.

    Over the limit is a result, not an error: the flow fails only after the report is written.
    """

    limit_bytes: PositiveInt
    total_bytes: PositiveInt
    code_bytes: PositiveInt
    model_bytes: PositiveInt
    margin_bytes: int = Field(description="limit minus total; negative when over")
    fits: bool
    files: tuple[SizePart, ...]
    tensor_groups: tuple[TensorGroup, ...] = Field(
        description="the blob's bytes by tensor group, in proportion to each tensor compressed alone"
    )
    largest: tuple[SizePart, ...] = Field(description="the three largest contributors")
