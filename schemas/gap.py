"""What quantization costs in bits per byte, by cause."""

from pydantic import Field, NonNegativeFloat, PositiveInt

from schemas.base import Schema


class GapPart(Schema):
    """One cause. Negative: the text happens to be predicted better with it."""

    cause: str
    bpb: float
    standard_error_bpb: NonNegativeFloat = Field(
        description="over the sequences, both models scored on the same ones"
    )
    divergence_nats: float | None = Field(
        None,
        description=(
            "how far this step moves the predictions: Kullback-Leibler divergence, nats a "
            "token; None for what is no step"
        ),
    )


class GapByCause(Schema):
    """The parts in the order of the steps from the merged to the shipped weights; they sum to the total."""

    total: GapPart
    parts: tuple[GapPart, ...]
    num_sequences: PositiveInt
    sequence_length: PositiveInt
    note: str = Field(description="what the method has no part for, and why")
