"""Quantization: the merged model in; one compressed blob and a row for each tensor out."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from schemas.base import Schema, Volatile
from schemas.compute_settings import ComputeSettings
from schemas.files import FileRef
from schemas.introspect import inherited_by_both
from schemas.quantizer_settings import (
    QUANTIZER_OF_METHOD,
    AnyQuantizer,
    CalibratedSettings,
    CalibrationSettings,
    GptqLite,
    QuantizerSettings,
    RoundToNearest,
)

Q = TypeVar("Q", bound=QuantizerSettings)
if TYPE_CHECKING:  # mypy reads no Literal that is made
    QuantizeMethod: TypeAlias = str
else:
    QuantizeMethod = Literal[*QUANTIZER_OF_METHOD]


def _with_method(given: Any) -> Any:
    return {"method": GptqLite.method, **given} if isinstance(given, dict) else given


QuantizeSpec = Annotated[AnyQuantizer, Field(discriminator="method"), BeforeValidator(_with_method)]
"""The settings of one quantizer; without `method` those of gptq_lite."""


def changed_to(kind: type[Q], settings: QuantizerSettings, **changes: Any) -> Q:
    """Settings of another quantizer: what both inherit as it is in `settings`, then `changes`, and the
    defaults.
    """
    kept = {name: getattr(settings, name) for name in inherited_by_both(kind, type(settings))}
    return kind(**kept | changes)


def quantize_compute(spec: QuantizerSettings) -> ComputeSettings:
    """What quantization computes with: the CPU, or the device that reads the calibration text, in the
    precision of that reading. Rounding is in float32.
    """
    calibration = spec.calibration if isinstance(spec, CalibratedSettings) else CalibrationSettings()
    return ComputeSettings(
        device=calibration.device, threads_per_process=calibration.threads, precision=calibration.precision
    )


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
            "token; of methods that read text"
        ),
    )
    text_seconds: Volatile[float | None] = Field(
        None,
        description="from the first read of training text to the finished codes; of methods that read text",
    )
    step_multiplier: float | None = Field(
        None, description="what all steps were multiplied by, of a method that chooses its steps (ecsq)"
    )
    fit_tries: tuple[FitTry, ...] = Field(
        (), description="what the fit to a byte limit measured, in its order"
    )
    tensors: tuple[TensorReport, ...]

    @property
    def is_plain(self) -> bool:
        """Whether it is plain rounding itself, with which others are compared."""
        return self.method == RoundToNearest.method

    @property
    def is_coded(self) -> bool:
        """Whether its steps are its own and its codes went through the entropy coder: then no error of
        plain rounding compares with its.
        """
        return self.step_multiplier is not None

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
