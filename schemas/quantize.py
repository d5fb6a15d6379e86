"""Quantization: the merged model in; one compressed blob and a row for each tensor out."""

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from schemas.base import Schema
from schemas.files import FileRef
from schemas.quantizer_settings import QuantizerSettings
from schemas.settings import ComputeSettings

QuantizeSpec = QuantizerSettings


def quantize_compute(spec: QuantizeSpec) -> ComputeSettings:
    """What quantization computes with: the CPU, in float32."""
    return ComputeSettings(threads_per_process=spec.calibration.threads, precision="float32")


class ClipShare(Schema):
    """How many rows chose a clip ratio."""

    clip_ratio: float
    num_rows: PositiveInt


class TensorReport(Schema):
    """One tensor in the blob."""

    name: str
    shape: tuple[int, ...]
    format: str
    num_elements: PositiveInt
    clips: tuple[ClipShare, ...] = Field(description="empty for tensors kept in floating point")
    rms_error: NonNegativeFloat = Field(description="root mean square of stored minus original")
    rms_error_round_to_nearest: NonNegativeFloat = Field(
        description="the same with every row's clip ratio at 1"
    )
    relative_error: NonNegativeFloat = Field(description="rms_error over the tensor's own rms")
    entropy_bits: NonNegativeFloat = Field(description="order-0 entropy of the stored symbols, bits a weight")
    stored_bytes: NonNegativeInt = Field(description="before compression, scales included")
    compressed_bytes: NonNegativeInt = Field(
        description="this tensor's payload compressed alone at the same level"
    )
    divergence_nats: float | None = Field(
        None, description="what coding this matrix alone moves the predictions by, nats a token"
    )


class FitTry(Schema):
    """One size that the search for a byte limit measured."""

    step_multiplier: PositiveFloat
    package_bytes: PositiveInt = Field(description="blob and the script's bytes")


class PackedModel(Schema):
    """The blob that ships and how it came to its size."""

    blob: FileRef
    method: str
    num_parameters: PositiveInt
    stored_bytes: PositiveInt = Field(description="header and tensors before compression")
    header_bytes: PositiveInt = Field(description="JSON header before compression")
    blob_bytes: PositiveInt
    blob_bytes_round_to_nearest: PositiveInt = Field(
        description="the same model with plain rounding, same rules and level"
    )
    divergence_nats: float | None = Field(
        None,
        description=(
            "Kullback-Leibler divergence on training text from the merged model, nats a "
            "token; gptq and ecsq only"
        ),
    )
    step_multiplier: float | None = Field(None, description="what ecsq multiplied all steps by")
    fit_tries: tuple[FitTry, ...] = Field(
        (), description="what the fit to a byte limit measured, in its order"
    )
    tensors: tuple[TensorReport, ...]

    @property
    def bits_per_parameter(self) -> float:
        """Of the whole blob, everything included."""
        return 8 * self.blob_bytes / self.num_parameters

    @property
    def squared_error_saved(self) -> float:
        """Share of plain rounding's squared error that the method saves on the tensors stored as integers;
        negative where it adds some.
        """
        stored = [tensor for tensor in self.tensors if tensor.format.startswith("int")]
        squares = sum(tensor.num_elements * tensor.rms_error**2 for tensor in stored)
        plain = sum(tensor.num_elements * tensor.rms_error_round_to_nearest**2 for tensor in stored)
        return 1 - squares / plain if plain else 0.0
