"""The frontier of a run: its merged model quantized in several ways, bytes and bits per byte of each."""

from pydantic import Field, NonNegativeFloat, PositiveInt

from schemas.base import SCHEMA_VERSION, Schema, SchemaVersion


class FrontierPoint(Schema):
    """One package, scored."""

    scheme: str = Field(description="METHOD:SETTING, or the run's own")
    method: str
    total_bytes: PositiveInt = Field(description="script and blob, as check_size counts them")
    model_bytes: PositiveInt
    code_bytes: PositiveInt
    bits_per_parameter: NonNegativeFloat = Field(description="of the blob")
    bpb: float
    gap_bpb: float = Field(description="bpb less that of the unquantized model, the same windows")
    quantize_seconds: NonNegativeFloat = Field(description="of the stage quantize when it was computed")


class Frontier(Schema):
    """All points of a run. What failed is no point; `failed` says why."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    run_id: str
    run_name: str
    unquantized_bpb: float
    limit_bytes: PositiveInt
    num_targets: PositiveInt = Field(description="validation tokens that every score is made of")
    sequence_length: PositiveInt
    precision: str
    shipped: FrontierPoint = Field(description="what the run itself ships")
    points: tuple[FrontierPoint, ...]
    failed: dict[str, str] = Field(description="scheme -> why it has no point")

    def is_efficient(self, point: FrontierPoint) -> bool:
        """No other point has both no more bytes and no more bpb, and less of one of them."""
        ours = (point.total_bytes, point.bpb)
        others = [(other.total_bytes, other.bpb) for other in (*self.points, self.shipped)]
        return not any(other != ours and other[0] <= ours[0] and other[1] <= ours[1] for other in others)
