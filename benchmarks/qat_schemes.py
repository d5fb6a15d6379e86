"""Quantizations that `benchmarks.qat` compares, and the grids that training rounds to for them."""

from dataclasses import dataclass

from schemas.pipeline import on_grid_of
from schemas.qat_settings import QatSettings
from schemas.quantizer_settings import (
    AnyQuantizer,
    Ecsq,
    FittingSettings,
    Gptq,
    GptqLite,
    RoundToNearest,
)
from schemas.tensor_formats import FormatRule, TensorFormat


@dataclass(frozen=True)
class Scheme:
    """A quantization; the embedding is int8 in all."""

    quantizer: type[AnyQuantizer]
    bits: TensorFormat

    @property
    def name(self) -> str:
        method = self.quantizer.method
        return method if issubclass(self.quantizer, FittingSettings) else f"{method} {self.bits}"

    def settings(self) -> AnyQuantizer:
        rules = (
            FormatRule("tok_emb.weight", "int8"),
            FormatRule("*.weight", self.bits),
            FormatRule("*", "fp32"),
        )
        return self.quantizer(rules=rules)

    def qat(self, start_lr_scale: float) -> QatSettings:
        settings = self.settings()
        return on_grid_of(settings, QatSettings(start_lr_scale, settings.rules))


INT6, INT5, CLIPPED = (
    Scheme(RoundToNearest, "int6"),
    Scheme(RoundToNearest, "int5"),
    Scheme(GptqLite, "int6"),
)
GPTQ6, GPTQ5, CODED = Scheme(Gptq, "int6"), Scheme(Gptq, "int5"), Scheme(Ecsq, "int8")
QUANTIZED_WITHOUT = (INT6, INT5, CLIPPED, GPTQ6, GPTQ5, CODED)
GRIDS: dict[Scheme, tuple[Scheme, ...]] = {
    INT6: (INT6, GPTQ6, CLIPPED),
    INT5: (INT5, GPTQ5),
    CLIPPED: (CLIPPED, INT6),
}
"""What training rounds to -> what its weights are quantized by: gptq has plain rounding's grid, and the
last one of int6 is another.
"""
