"""The quantizers: the type of the settings says which function carries them out.

What a run must know of a quantizer before torch is imported (whether it reads text, whether it can meet a
limit, its grid for late QAT) is a fact of the settings' type.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from schemas.quantizer_settings import (
    Ecsq,
    Gptq,
    GptqLite,
    QuantizerSettings,
    Reference,
    RoundToNearest,
)
from stages.core.calibrated.calibration import Calibration, QuantizedByText
from stages.core.calibrated.coded_model import ecsq_by_text
from stages.core.calibrated.gptq import gptq_by_text
from stages.core.quantizers.gptq_lite import gptq_lite
from stages.core.quantizers.grid import QuantizedRows
from stages.core.quantizers.reference import reference
from stages.core.quantizers.round_to_nearest import round_to_nearest


@dataclass(frozen=True)
class MatrixQuantizer:
    """Sees one matrix at a time: `function` takes a matrix (R, C) float32, its bits and the settings.

    The audit takes its errors apart by clipping, rounding and fp16 scales; `note` is what it says besides.
    """

    function: Callable[[Tensor, int, Any], QuantizedRows]
    note: str = ""


@dataclass(frozen=True)
class TextQuantizer:
    """Sees the whole model and what text says of it: `function` takes the state, the settings and the
    calibration.

    To the audit its errors have neither clipping nor fp16 scales as causes of their own; `note` says why.
    """

    function: Callable[[dict[str, Tensor], Any, Calibration], QuantizedByText]
    note: str


QUANTIZERS: dict[type[QuantizerSettings], MatrixQuantizer | TextQuantizer] = {
    RoundToNearest: MatrixQuantizer(round_to_nearest),
    GptqLite: MatrixQuantizer(gptq_lite),
    Reference: MatrixQuantizer(reference),
    Gptq: TextQuantizer(
        gptq_by_text,
        "gptq clips only what row_deviations asks for, and its error feedback makes up for the fp16 scales "
        "while it rounds: they are no part of their own",
    ),
    Ecsq: TextQuantizer(
        ecsq_by_text,
        "ecsq clips nothing, and its steps are powers of two in quarter octaves: there are no fp16 scales",
    ),
}
